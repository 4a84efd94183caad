// Takes all of a card's memory but so many bytes, as another program may, and holds it until its input ends.
//   node test/gpu/hold-memory.mjs <compiled folder of attention layers> <bytes to leave>
import { cudaCards, load } from "layerweave/runtime";

const [folder, leave] = process.argv.slice(2);
const model = await load(folder, { device: "cuda:0", context: 16 });
const perPosition = model.manifest.state.reduce((sum, { shape }) => sum + shape.reduce((n, d) => n * (typeof d === "number" ? d : 1), 2), 0);
const [{ freeBytes }] = await cudaCards();
await model.session.createState(1, Math.floor((freeBytes - Number(leave)) / perPosition));
const [card] = await cudaCards();
console.log(`${card.freeBytes} bytes of ${card.name} are left`);
process.stdin.resume().on("end", () => void model.close());
