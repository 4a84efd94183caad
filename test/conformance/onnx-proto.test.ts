import { readFile } from "node:fs/promises";
import { join } from "node:path";
import onnxProto from "onnx-proto";
import { describe, expect, it } from "vitest";
import { checkedLayout, lower } from "../../compiler/lower.js";
import { portable } from "../../compiler/targets/portable.js";
import halfLayers from "../golden/half-layers/layout.js";
import jambaBlock from "../golden/jamba-block/layout.js";
import slidingWindow from "../golden/sliding-window/layout.js";
import { withCompiled } from "../properties/graph-session.js";

const { onnx } = onnxProto;

// onnx-proto is a decoder that shares nothing with the writer, generated from ONNX 1.10: it knows everything but overloads.
describe.each([jambaBlock, slidingWindow, halfLayers])("onnx-proto decodes $name", (model) => {
  it("and finds the nodes, initializers and functions of the tensor IR", async () => {
    const layout = checkedLayout(model);
    const { module } = lower(layout, portable, () => "float32");
    await withCompiled(layout, { seed: 0 }, async (folder) => {
      const { graph, functions, irVersion, opsetImport } = onnx.ModelProto.decode(await readFile(join(folder, "model.onnx")));
      expect(Number(irVersion)).toBe(portable.irVersion);
      expect(opsetImport.map(({ domain, version }) => [domain, Number(version)])).toEqual([
        ["", portable.opset],
        ["ai.layerweave", 1],
      ]);
      const opOf = ({ domain, opType }: { domain?: string | null; opType?: string | null }) => (domain ? `${domain}::${opType}` : opType);

      expect(graph?.node?.map(opOf)).toEqual(module.graph.nodes.map(({ op }) => op));
      expect(graph?.node?.map(({ name }) => name)).toEqual(module.graph.nodes.map(({ name }) => name));
      expect(graph?.node?.map(({ input }) => input)).toEqual(module.graph.nodes.map(({ inputs }) => inputs.map((value) => value?.name ?? "")));
      expect(graph?.node?.map(({ output }) => output)).toEqual(module.graph.nodes.map(({ outputs }) => outputs.map(({ name }) => name)));
      expect(graph?.input?.map(({ name }) => name)).toEqual(module.graph.inputs.map(({ name }) => name));
      expect(graph?.output?.map(({ name }) => name)).toEqual(module.graph.outputs.map(({ name }) => name));

      const external = graph?.initializer?.filter(({ dataLocation }) => dataLocation === onnx.TensorProto.DataLocation.EXTERNAL) ?? [];
      expect(external.map(({ name, dims }) => [name, dims?.map(Number)])).toEqual(module.graph.weights.map(({ value }) => [value.name, [...value.shape]]));
      const fileBytes = (await readFile(join(folder, "weights.safetensors"))).length;
      for (const { name, externalData, dims } of external) {
        const entry = (key: string) => externalData?.find((e) => e.key === key)?.value;
        expect(entry("location"), name ?? "").toBe("weights.safetensors");
        expect(Number(entry("length"))).toBe((dims ?? []).reduce((a: number, d) => a * Number(d), 4));
        expect(Number(entry("offset")) + Number(entry("length"))).toBeLessThanOrEqual(fileBytes);
      }

      expect(functions.map(({ domain, name }) => `${domain}::${name}`)).toEqual(module.functions.map(({ op }) => op));
      functions.forEach((f, i) => {
        const { inputNames, attributeNames, body } = module.functions[i]!;
        expect(f.input).toEqual(inputNames);
        expect(f.attribute).toEqual(attributeNames);
        expect(f.output).toEqual(body.outputs.map(({ name }) => name));
        expect(f.node?.filter(({ opType }) => opType !== "Constant").map(opOf)).toEqual(body.nodes.map(({ op }) => op));
      });
    });
  });
});
