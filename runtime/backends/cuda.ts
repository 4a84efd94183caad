import { existsSync } from "node:fs";
import { fail } from "../../core/diagnostics.js";
import { runtimeDiagnostics } from "../diagnostics.js";
import type { Backend, BackendChoice, Card, OpenRequest } from "./backend.js";
import { type CudaProblem, loadNativeRuntime, type NativeRuntime } from "./native-addon.js";
import { openSession, weightsInOrder } from "./native.js";

/**
 * The cards that models compiled for CUDA can run on here.
 * @throws LayerweaveError `runtime/cuda-…` saying what is missing, `runtime/native-unavailable`
 */
export async function cudaCards(): Promise<readonly Card[]> {
  const native = nativeRuntime();
  // Asking about a card makes a context on it, so they are asked about one by one.
  const { cards } = await probe(native, -1);
  if (cards.length === 0) fail(runtimeDiagnostics["cuda-no-device"], { ordinal: 0, cards: [] });
  requireKernels(native);
  return Promise.all(cards.map(async (card, ordinal) => ({ ...card, ordinal, freeBytes: (await probe(native, ordinal)).freeBytes })));
}

/**
 * The backend for one card.
 * @throws LayerweaveError as `cudaCards`
 */
export async function chooseCuda(ordinal: number, why: string): Promise<{ readonly backend: Backend; readonly choice: BackendChoice }> {
  const native = nativeRuntime();
  const { cards, freeBytes } = await probe(native, ordinal);
  const found = cards[ordinal];
  if (!found) fail(runtimeDiagnostics["cuda-no-device"], { ordinal, cards: cards.map(({ name }) => name) });
  requireKernels(native);
  const card: Card = { ...found, ordinal, freeBytes };
  return {
    backend: cudaBackend(native, card),
    choice: { name: "cuda", card, ops: "kernels", why: `${why}, on cuda:${ordinal} (${card.name}) with ONNX Runtime ${native.version}` },
  };
}

function nativeRuntime(): NativeRuntime {
  const native = loadNativeRuntime();
  if ("reason" in native) fail(runtimeDiagnostics["native-unavailable"], { reason: native.reason });
  return native;
}

function requireKernels({ addon, library, cudaKernels }: NativeRuntime): void {
  const missing = (problem: string): never => fail(runtimeDiagnostics["cuda-no-kernels"], { file: cudaKernels, problem });
  if (!existsSync(cudaKernels)) missing("it is not there");
  try {
    addon.probe(library, cudaKernels);
    addon.probeSampler(cudaKernels);
  } catch (error) {
    missing((error as Error).message.trim());
  }
}

async function probe({ addon, library }: NativeRuntime, ordinal: number): ReturnType<NativeRuntime["addon"]["probeCuda"]> {
  try {
    return await addon.probeCuda(library, ordinal);
  } catch (error) {
    const { message: problem, code } = error as Error & { readonly code: CudaProblem };
    switch (code) {
      case "no-driver":
        return fail(runtimeDiagnostics["cuda-no-driver"], { problem });
      case "no-libraries":
        return fail(runtimeDiagnostics["cuda-no-libraries"], { problem });
      case "no-provider":
        return fail(runtimeDiagnostics["cuda-no-provider"], { problem });
      case "other-provider":
        return fail(runtimeDiagnostics["cuda-other-provider"], { problem });
      case "failed":
        return fail(runtimeDiagnostics["cuda-failed"], { problem });
    }
  }
}

/** Our addon over ONNX Runtime's CUDA provider: state and weights lie on the card, and decode steps are repeated as captured graphs. */
function cudaBackend(native: NativeRuntime, { ordinal }: Card): Backend {
  return {
    name: "cuda",
    open(request: OpenRequest) {
      return openSession(native, native.cudaKernels, request, { ordinal, graphs: request.cudaGraphs, arenaBytes: request.arenaBytes, weights: weightsInOrder(request.folder, request.manifest) });
    },
  };
}
