// An application that embeds the runtime: an HTTP server that streams a continuation of the text it is sent.
//
//   npm run build && npx layerweave compile examples/tiny-jamba -o out/tiny-jamba
//   node examples/story-server.mjs out/tiny-jamba 8080
//   curl -N -d 'And it came to pass ' http://localhost:8080/?maxTokens=40
import { createServer } from "node:http";
import { LayerweaveError, load } from "layerweave/runtime";

const [folder = "out/tiny-jamba", port = "8080"] = process.argv.slice(2);
const model = await load(folder);

const server = createServer(async (request, response) => {
  // The reader may leave at any time; the model then stops after the token it is working on.
  const gone = new AbortController();
  response.on("close", () => gone.abort());
  try {
    let prompt = "";
    for await (const chunk of request.setEncoding("utf8")) prompt += chunk;
    const { searchParams } = new URL(request.url ?? "/", "http://localhost");
    const options = { maxTokens: Number(searchParams.get("maxTokens") ?? 64), temperature: 0.8, topP: 0.95, signal: gone.signal };
    for await (const { text } of model.generate(prompt, options)) response.write(text);
    response.end("\n");
  } catch (error) {
    if (gone.signal.aborted) return;
    if (!(error instanceof LayerweaveError)) throw error;
    if (!response.headersSent) response.writeHead(400);
    response.end(`${error.message}\n`);
  }
});

server.listen(Number(port), () => console.error(`listening on http://localhost:${server.address().port}`));

process.once("SIGINT", async () => {
  server.close();
  server.closeAllConnections();
  await model.close();
});
