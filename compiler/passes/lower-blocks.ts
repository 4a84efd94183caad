import { InternalError, invariant } from "../../core/diagnostics.js";
import { allParameters, type BlockModel, type BlockOp } from "../ir/block.js";
import { GraphBuilder } from "../ir/builder.js";
import type { Graph, GraphWeight, Module, Value } from "../ir/graph.js";
import type { Parameter, WeightDtype } from "../ir/parameter.js";
import { firstParameter, parametersOf, whole } from "../ir/recipe.js";
import { normalise } from "../rules/definition.js";
import { rulesOf } from "../rules/index.js";
import type { Target } from "../targets/target.js";

/** Block IR → tensor IR: each op by the rules of its kind, around one residual stream of [M, D], M = B·T. */
export function lowerBlocks(model: BlockModel, target: Target, storage: (parameter: Parameter) => WeightDtype): Module {
  const b = new GraphBuilder(model.name, model.origin);
  const inputIds = b.input("input_ids", "int64", ["B", "T"]);
  const pastLengths = b.input("past_lengths", "int64", ["B"]);
  const lengths = b.input("lengths", "int64", ["B"]);
  const logitIndices = b.input("logit_indices", "int64", ["B", "L"]);
  const state = model.ops.flatMap((op) => op.state);
  const past = new Map(state.map((slot) => [slot, b.input(slot.past, slot.dtype, slot.shape)]));
  const parameters = allParameters(model);
  const named = new Map(parameters.map((parameter) => [parameter.name, parameter]));

  const computed = (value: Value, label: string) =>
    target.weightStorage === "as-used" || value.dtype === target.computeDtype || value.scale ? value : b.op("Cast", label, [value], { to: target.computeDtype });
  const weight = (name: string, parts: readonly string[]): Value | undefined => {
    const found = parts.flatMap((part) => named.get(part) ?? []);
    if (found.length === 0) return undefined;
    invariant(found.length === parts.length, `${name} lacks a part`);
    const [dtype, ...others] = new Set(found.map(storage));
    return b.weight(name, whole(...found), others.length === 0 ? (dtype as WeightDtype) : "float32");
  };
  const optional = (name: string, label: string, parts: readonly string[] = [name]) => {
    const stored = weight(name, parts);
    return stored && computed(stored, label);
  };

  const embedding = weight("embedding.weight", ["embedding.weight"]);
  invariant(embedding, "a model without an embedding");
  const table = model.tieEmbeddings ? computed(embedding, "embedding.weight") : embedding; // [V, D]
  const ids = b.reshape("flat_ids", inputIds, [-1]); // [M]
  let x = computed(b.op("Gather", "embedding", [table, ids], { axis: 0 }), "embedding_cast"); // [M, D]

  const present = new Map<string, Value>();
  for (const op of model.ops) {
    const [scope, kind] = [`layers.${op.layer}`, op.spec.kind];
    x = b.scope(
      scope,
      () => {
        const normLabel = op.norm.name.split(".").at(-1) as string;
        const normed = normalise(b, normLabel, x, op.norm.spec, optional(`${op.norm.name}.weight`, `${normLabel}.weight`)); // [M, D]
        const { y, present: out } = b.scope(kind, () =>
          rulesOf(op.spec).lower(op.spec, normed, {
            b,
            target,
            inputIds,
            pastLengths,
            lengths,
            parameter: (name) => optional(`${op.name}.${name}`, name) ?? absent(op, name),
            optionalParameter: (name) => optional(`${op.name}.${name}`, name),
            unwidened: (names) => {
              const stored = names.map((name) => weight(`${op.name}.${name}`, [`${op.name}.${name}`]) ?? absent(op, name));
              return stored.every(({ dtype }) => dtype === "bfloat16") ? stored : stored.map((value, i) => computed(value, names[i] as string));
            },
            merged: (name, parts) => optional(`${op.name}.${name}`, name, parts.map((part) => `${op.name}.${part}`)),
            past: (role) => {
              const slot = op.state.find((s) => s.role === role);
              const value = slot && past.get(slot);
              invariant(value, `${op.name} declares no state ${role}`);
              return value;
            },
          }),
        );
        for (const slot of op.state) {
          const value = out[slot.role];
          invariant(value, `${op.name} returns no ${slot.role}`);
          present.set(slot.present, value);
        }
        return b.op("Add", op.role === "mixer" ? "mixer_residual" : "channel_mixer_residual", [x, y]); // [M, D]
      },
      op.origin,
    );
  }

  // Logits are wanted for few positions; the last norm and the output projection see only those.
  const selected = target.fusedMixers ? b.op("ai.layerweave::SelectTokens", "selected", [x, logitIndices]) : gathered(b, x, inputIds, logitIndices); // [B·L, D]
  const normed = normalise(b, "final_norm", selected, model.finalNorm, optional("final_norm.weight", "final_norm.weight")); // [B·L, D]
  const head = model.tieEmbeddings ? table : optional("lm_head.weight", "lm_head.weight");
  invariant(head, "a model without an output projection");
  const flatLogits = b.linear("lm_head", normed, head); // [B·L, V]
  const wide = flatLogits.dtype === "float32" ? flatLogits : b.op("Cast", "wide_logits", [flatLogits], { to: "float32" }); // [B·L, V]
  const indexShape = b.op("Shape", "logit_index_shape", [logitIndices]); // [2]
  const logitShape = b.op("Concat", "logit_shape", [indexShape, b.ints(model.vocabSize)], { axis: 0 }); // [3]
  // L may be 0, which Reshape would otherwise read as "keep this extent".
  const logits = b.op("Reshape", "logits_by_row", [wide, logitShape], { allowzero: 1 }); // [B, L, V]

  const outputs = [b.output("logits", logits), ...state.map((slot) => b.output(slot.present, present.get(slot.present) as Value))];
  return { graph: inParameterOrder(b.finish(outputs), parameters), functions: [], state };
}

function absent(op: BlockOp, name: string): never {
  throw new InternalError(`${op.name} declares no parameter ${name}`);
}

/** Rows of x [M, D] at the positions that logits are wanted for → [B·L, D] */
function gathered(b: GraphBuilder, x: Value, inputIds: Value, logitIndices: Value): Value {
  const dModel = x.shape[1] as number;
  const shape = b.shared(`token_shape_${dModel}`, () =>
    b.op("Concat", `token_shape_${dModel}`, [b.shared("ids_shape", () => b.op("Shape", "ids_shape", [inputIds])), b.ints(dModel)], { axis: 0 }),
  ); // [3]
  const tokens = b.op("Reshape", "tokens", [x, shape]); // [B, T, D]
  const indices = b.op("Unsqueeze", "logit_index_column", [logitIndices, b.ints(2)]); // [B, L, 1]
  const selected = b.op("GatherND", "selected", [tokens, indices], { batch_dims: 1 }); // [B, L, D]
  return b.reshape("selected_flat", selected, [-1, dModel]); // [B·L, D]
}

/** Weights in the order in which their parameters are declared, all of which some weight must hold. */
function inParameterOrder(graph: Graph, parameters: readonly Parameter[]): Graph {
  const place = new Map(parameters.map(({ name }, i) => [name, i]));
  const held = new Set(graph.weights.flatMap(({ recipe }) => parametersOf(recipe).map(({ name }) => name)));
  for (const { name } of parameters) invariant(held.has(name), `${name} is in no weight`);
  const placeOf = ({ recipe }: GraphWeight) => place.get(firstParameter(recipe).name) ?? -1;
  return { ...graph, weights: [...graph.weights].sort((a, b) => placeOf(a) - placeOf(b)) };
}
