import { parentPort } from "node:worker_threads";
import { invariant, LayerweaveError } from "../../core/diagnostics.js";
import type { PieceCall, PieceReply } from "./part-makers.js";
import { pieceMaker } from "./transforms.js";

invariant(parentPort, "the worker that makes weights was not started as a worker");
const port = parentPort;
const make = pieceMaker();

function answer({ id, piece, into }: PieceCall): PieceReply {
  try {
    return { id, scales: make(piece, into) };
  } catch (error) {
    return error instanceof LayerweaveError ? { id, diagnostics: error.diagnostics } : { id, error };
  }
}

port.on("message", (call: PieceCall) => port.postMessage(answer(call)));
