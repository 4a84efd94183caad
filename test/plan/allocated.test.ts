// The planner's state bytes are what the runtime allocates for a context that is filled to the end.
import { join } from "node:path";
import { expect, test } from "vitest";
import { checkedLayout, compile, importCheckpoint } from "layerweave/compiler";
import { deviceNamed, plan, planModelOf } from "layerweave/plan";
import { load } from "layerweave/runtime";
import { backends } from "../support/backends.js";
import { inRepository, temporaryFolder } from "../support/folders.js";

const out = await temporaryFolder();
const context = 300;

test.each(backends.flatMap((backend) => ["llama", "mistral-swa", "mamba", "jamba-block"].map((name) => [name, backend] as const)))("%s on the %s backend", async (name, backend) => {
  const checkpoint = await importCheckpoint(inRepository("test/fixtures/hf", name));
  const folder = join(out, `${name}-${backend}`);
  const { manifest } = await compile(checkedLayout(checkpoint.spec), { out: folder, weights: { from: "checkpoint", checkpoint } });
  const batch = 2;
  const { bytes } = plan(planModelOf(manifest), { device: deviceNamed("cpu"), context, batch, chunk: 64, quantize: "none", budget: 1e12 });

  await using model = await load(folder, { backend, context, batch, chunk: 64 });
  // The first state of a session has id 0.
  await using state = await model.createState({ batch });
  await model.prefill(state, Array.from({ length: batch }, () => Array.from({ length: context }, (_, i) => i % 300)), { chunk: 64 });
  const allocated = { key: 0, value: 0, conv_state: 0, ssm_state: 0 };
  for (const [i, slot] of manifest.state.entries()) {
    const { shape } = await model.session.readState(0, i);
    allocated[slot.role] += shape.reduce((a, b) => a * b, 4);
  }
  expect({ kvCache: allocated.key + allocated.value, convState: allocated.conv_state, ssmState: allocated.ssm_state }).toEqual({
    kvCache: bytes.kvCache,
    convState: bytes.convState,
    ssmState: bytes.ssmState,
  });
});
