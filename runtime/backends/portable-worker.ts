import { isMainThread, parentPort, workerData } from "node:worker_threads";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { invariant } from "../../core/diagnostics.js";
import type { Manifest } from "../../core/manifest.js";
import type { SlotContent, StateId } from "./backend.js";
import { busyFlag, stopFlag, type Call, type Reply, type WorkerStart } from "./worker-channel.js";

/** The part of a compiled folder this thread needs. */
export interface PortableModel {
  readonly graphPath: string;
  readonly threads: number;
  readonly inputs: Manifest["inputs"];
  readonly outputs: Manifest["outputs"];
  readonly state: Manifest["state"];
  readonly contextLength: number | null;
}

export type PortableRequest =
  | { readonly kind: "load" }
  | { readonly kind: "create"; readonly batch: number; readonly capacity: number }
  | { readonly kind: "copy" | "release"; readonly state: StateId }
  | { readonly kind: "read"; readonly state: StateId; readonly slot: number }
  | { readonly kind: "read-bytes"; readonly state: StateId; readonly slot: number; readonly lengths: readonly number[]; readonly from: number; readonly count: number }
  | { readonly kind: "write-bytes"; readonly state: StateId; readonly slot: number; readonly lengths: readonly number[]; readonly from: number; readonly bytes: Uint8Array }
  | { readonly kind: "copy-row"; readonly state: StateId; readonly fromRow: number; readonly tokens: number; readonly to: StateId; readonly toRow: number }
  | {
      readonly kind: "forward";
      readonly state: StateId;
      readonly inputIds: BigInt64Array;
      readonly pastLengths: readonly number[];
      readonly lengths: readonly number[];
      readonly logitIndices: BigInt64Array;
    }
  | { readonly kind: "close" };

/** Runs only ever read it or replace it, so copies of a state share it until one of them moves on. */
interface StateBuffer {
  readonly tensor: Tensor;
  holders: number;
}

interface SlotBuffers {
  current: StateBuffer;
  /** The buffer `current` was computed from; the next run writes into it, so that no run allocates state. */
  spare?: StateBuffer;
}

interface StateTensors {
  readonly batch: number;
  capacity: number;
  readonly slots: SlotBuffers[];
}

invariant(!isMainThread && parentPort, "the portable worker was not started as a worker");
const port = parentPort;
const { data: model, flags } = workerData as WorkerStart<PortableModel>;
const states = new Map<StateId, StateTensors>();
let nextState: StateId = 0;
let session: InferenceSession | undefined;

/** Enters native code, unless the process is ending (see `WorkerChannel`). */
async function native<T>(enter: () => Promise<T>): Promise<T> {
  Atomics.store(flags, busyFlag, 1);
  try {
    if (Atomics.load(flags, stopFlag) === 1) throw new Error("the process is ending");
    return await enter();
  } finally {
    Atomics.store(flags, busyFlag, 0);
    Atomics.notify(flags, busyFlag);
  }
}

function slotShape(slot: number, batch: number, capacity: number): number[] {
  const shape = model.state[slot]?.shape;
  invariant(shape, "no such state slot");
  return shape.map((dim) => {
    if (typeof dim === "number") return dim;
    invariant(dim === "B" || dim === "S", `state is not shaped by ${dim}`);
    return dim === "B" ? batch : capacity;
  });
}

function zeros(shape: readonly number[]): StateBuffer {
  return { tensor: new Tensor("float32", new Float32Array(shape.reduce((n, d) => n * d, 1)), shape), holders: 1 };
}

function dataOf(buffer: StateBuffer): Float32Array {
  invariant(buffer.tensor.data instanceof Float32Array, "state is float32");
  return buffer.tensor.data;
}

function stateOf(id: StateId): StateTensors {
  const state = states.get(id);
  invariant(state, `no state ${id}`);
  return state;
}

function create(batch: number, capacity: number): StateId {
  states.set(nextState, { batch, capacity, slots: model.state.map((_, i) => ({ current: zeros(slotShape(i, batch, capacity)) })) });
  return nextState++;
}

function copy(id: StateId): StateId {
  const { batch, capacity, slots } = stateOf(id);
  for (const slot of slots) slot.current.holders++;
  states.set(nextState, { batch, capacity, slots: slots.map(({ current }) => ({ current })) });
  return nextState++;
}

function release(id: StateId): void {
  for (const slot of stateOf(id).slots) slot.current.holders--;
  states.delete(id);
}

/** Makes room for `needed` positions: twice the capacity or more, but no more than the context unless padding needs it. */
function grow(state: StateTensors, needed: number): void {
  if (needed <= state.capacity) return;
  const capacity = Math.max(needed, Math.min(2 * state.capacity, model.contextLength ?? Infinity));
  state.slots.forEach((slot, index) => {
    const axis = model.state[index]?.shape.indexOf("S") ?? -1;
    if (axis < 0) return;
    const shape = slotShape(index, state.batch, capacity);
    const next = zeros(shape);
    const from = dataOf(slot.current);
    const to = dataOf(next);
    const inner = shape.slice(axis + 1).reduce((n, d) => n * d, 1);
    const rows = shape.slice(0, axis).reduce((n, d) => n * d, 1);
    for (let row = 0; row < rows; row++)
      to.set(from.subarray(row * state.capacity * inner, (row + 1) * state.capacity * inner), row * capacity * inner);
    slot.current.holders--;
    slot.current = next;
    delete slot.spare;
  });
  state.capacity = capacity;
}

/** [B] as the graph takes it. */
function int64(values: readonly number[]): Tensor {
  return new Tensor("int64", BigInt64Array.from(values, BigInt), [values.length]);
}

async function forward(request: Extract<PortableRequest, { kind: "forward" }>): Promise<Float32Array> {
  invariant(session, "the model is not loaded");
  const running = session;
  const state = stateOf(request.state);
  const tokens = request.inputIds.length / state.batch;
  grow(state, Math.max(...request.pastLengths) + tokens);
  const feeds: Record<string, Tensor> = {
    [model.inputs.inputIds.name]: new Tensor("int64", request.inputIds, [state.batch, tokens]),
    [model.inputs.pastLengths.name]: int64(request.pastLengths),
    [model.inputs.lengths.name]: int64(request.lengths),
    [model.inputs.logitIndices.name]: new Tensor("int64", request.logitIndices, [state.batch, request.logitIndices.length / state.batch]),
  };
  const fetches: Record<string, Tensor | null> = { [model.outputs.logits.name]: null };
  const outputs = state.slots.map((slot, index) => {
    const spec = model.state[index];
    invariant(spec, "one buffer per slot");
    // Writing a KV cache in place touches only positions that don't count yet, so a failed run still changes nothing.
    const inPlace = spec.update === "in-place" && spec.rewind === "trim" && slot.current.holders === 1;
    const output = inPlace ? slot.current : (slot.spare ?? zeros(slot.current.tensor.dims));
    feeds[spec.past] = slot.current.tensor;
    fetches[spec.present] = output.tensor;
    return output;
  });
  const results = await native(() => running.run(feeds, fetches));
  state.slots.forEach((slot, index) => {
    const output = outputs[index];
    invariant(output, "one output per slot");
    if (output === slot.current) return;
    const previous = slot.current;
    if (previous.holders === 1) slot.spare = previous;
    else {
      previous.holders--;
      delete slot.spare;
    }
    slot.current = output;
  });
  const logits = results[model.outputs.logits.name]?.data;
  invariant(logits instanceof Float32Array, "the graph returns float32 logits");
  return logits;
}

function read(id: StateId, slot: number): SlotContent {
  const state = stateOf(id);
  const buffers = state.slots[slot];
  invariant(buffers, `no slot ${slot}`);
  return { shape: buffers.current.tensor.dims, data: dataOf(buffers.current).slice() };
}

/** The slot's numbers, no longer shared with copies of the state. */
function ownData(slot: SlotBuffers): Float32Array {
  if (slot.current.holders > 1) {
    const own = zeros(slot.current.tensor.dims);
    dataOf(own).set(dataOf(slot.current));
    slot.current.holders--;
    slot.current = own;
  }
  return dataOf(slot.current);
}

interface Rows {
  readonly data: Float32Array;
  readonly row: number;
  readonly capacity: number;
}

/** Copies one row to another: of a slot that grows per token the first `tokens` positions, of one that doesn't all. */
function copyRowOf(index: number, from: Rows, to: Rows, tokens: number): void {
  const shape = slotShape(index, 1, 1);
  const axis = model.state[index]?.shape.indexOf("S") ?? -1;
  const groups = axis < 0 ? 1 : shape.slice(0, axis).reduce((n, d) => n * d, 1);
  const inner = shape.reduce((n, d) => n * d, 1) / groups;
  const [count, fromStride, toStride] = axis < 0 ? [inner, inner, inner] : [tokens * inner, from.capacity * inner, to.capacity * inner];
  for (let g = 0; g < groups; g++) {
    const start = (from.row * groups + g) * fromStride;
    to.data.set(from.data.subarray(start, start + count), (to.row * groups + g) * toStride);
  }
}

/** Goes through bytes `from` … `from + count` of a slot of the longest row's positions: where each stretch lies in the tensor, and how many of its bytes count. */
function eachStretch(index: number, { batch, capacity }: StateTensors, lengths: readonly number[], from: number, count: number, visit: (inTensor: number, inSlot: number, bytes: number, counted: number) => void): void {
  const shape = slotShape(index, 1, 1);
  const axis = model.state[index]?.shape.indexOf("S") ?? -1;
  const groups = axis < 0 ? 1 : shape.slice(0, axis).reduce((n, d) => n * d, 1);
  const inner = shape.reduce((n, d) => n * d, Float32Array.BYTES_PER_ELEMENT) / groups;
  const [whole, distance] = axis < 0 ? [inner, inner] : [Math.max(...lengths) * inner, capacity * inner];
  invariant(from + count <= whole * groups * batch, "the slot holds these bytes");
  for (let at = from; at < from + count; ) {
    const [group, begin] = [Math.floor(at / whole), at % whole];
    const bytes = Math.min(from + count - at, whole - begin);
    const own = axis < 0 ? whole : (lengths[Math.floor(group / groups)] ?? 0) * inner;
    visit(group * distance + begin, at - from, bytes, Math.min(Math.max(own - begin, 0), bytes));
    at += bytes;
  }
}

const bytesOf = (data: Float32Array): Uint8Array => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

function slotOf(state: StateTensors, index: number): SlotBuffers {
  const slot = state.slots[index];
  invariant(slot, `no slot ${index}`);
  return slot;
}

function readBytes({ state: id, slot, lengths, from, count }: Extract<PortableRequest, { kind: "read-bytes" }>): Uint8Array {
  const state = stateOf(id);
  const data = bytesOf(dataOf(slotOf(state, slot).current));
  const bytes = new Uint8Array(count);
  eachStretch(slot, state, lengths, from, count, (inTensor, inSlot, _, counted) => bytes.set(data.subarray(inTensor, inTensor + counted), inSlot));
  return bytes;
}

function writeBytes({ state: id, slot: index, lengths, from, bytes }: Extract<PortableRequest, { kind: "write-bytes" }>): void {
  const state = stateOf(id);
  const slot = slotOf(state, index);
  invariant(slot.current.holders === 1, "a state that is filled shares nothing");
  const data = bytesOf(dataOf(slot.current));
  eachStretch(index, state, lengths, from, bytes.length, (inTensor, inSlot, count) => data.set(bytes.subarray(inSlot, inSlot + count), inTensor));
}

function copyRow({ state: id, fromRow, tokens, to, toRow }: Extract<PortableRequest, { kind: "copy-row" }>): void {
  const source = stateOf(id);
  const target = stateOf(to);
  grow(target, tokens);
  target.slots.forEach((slot, index) => {
    const from = source.slots[index];
    invariant(from, "one buffer per slot");
    const data = ownData(slot);
    copyRowOf(index, { data: dataOf(from.current), row: fromRow, capacity: source.capacity }, { data, row: toRow, capacity: target.capacity }, tokens);
  });
}

async function answer(request: PortableRequest): Promise<unknown> {
  switch (request.kind) {
    case "load":
      session = await native(() =>
        InferenceSession.create(model.graphPath, {
          intraOpNumThreads: model.threads,
          interOpNumThreads: 1,
          // A pattern is kept for every combination of shapes that was seen, each with memory of its own: more than was planned.
          enableMemPattern: false,
          // TensorScatter warns on every run; errors are raised as well as logged, and reported once is enough.
          logSeverityLevel: 4,
          // Threads that spin between operators take the cores the event loop needs.
          extra: { session: { intra_op: { allow_spinning: "0" } } },
        }),
      );
      return undefined;
    case "create":
      return create(request.batch, request.capacity);
    case "copy":
      return copy(request.state);
    case "release":
      return release(request.state);
    case "read":
      return read(request.state, request.slot);
    case "read-bytes":
      return readBytes(request);
    case "write-bytes":
      return writeBytes(request);
    case "copy-row":
      return copyRow(request);
    case "forward":
      return forward(request);
    case "close":
      states.clear();
      await session?.release();
      return undefined;
  }
}

// Runs are asynchronous, so one call would overtake another without this queue.
let queue = Promise.resolve();
port.on("message", ({ id, request }: Call<PortableRequest>) => {
  queue = queue.then(async () => {
    try {
      const value = await answer(request);
      const transfer = (value instanceof Float32Array || value instanceof Uint8Array) && value.buffer instanceof ArrayBuffer ? [value.buffer] : [];
      port.postMessage({ id, value } satisfies Reply, transfer);
    } catch (error) {
      port.postMessage({ id, problem: error instanceof Error ? error.message : String(error) } satisfies Reply);
    }
    if (request.kind === "close") port.close();
  });
});
