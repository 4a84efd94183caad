import { catalogue, define } from "../../core/diagnostics.js";

export const importDiagnostics = catalogue("import", {
  "no-config": define<{ folder: string; file: string }>({
    severity: "error",
    message: ({ folder, file }) => `${folder} holds no ${file}.`,
    help: () => "Give the folder that a checkpoint was downloaded to from the Hugging Face hub, with its config.json.",
    explain: "config.json says which family a checkpoint belongs to and how wide and deep it is. Without it the tensors can't be interpreted.",
  }),
  unreadable: define<{ path: string; problem: string }>({
    severity: "error",
    message: ({ path, problem }) => `${path} can't be read (${problem}).`,
    help: () => "Check the permissions of the file and of the folders above it.",
    explain: "The operating system refused to open or read a file of the checkpoint. Its own error is shown.",
  }),
  "config-damaged": define<{ path: string; problem: string }>({
    severity: "error",
    message: ({ path, problem }) => `${path} can't be used: ${problem}.`,
    help: () => "Download the file again.",
    explain: "config.json and generation_config.json are JSON objects. The file found is cut off, edited by hand with a mistake, or something else.",
  }),
  "unsupported-model-type": define<{ found: string; supported: readonly string[] }>({
    severity: "error",
    message: ({ found }) => (found === "" ? "config.json has no model_type." : `model_type ${JSON.stringify(found)} is not supported.`),
    help: ({ supported }) => `Give a checkpoint of one of ${supported.join(", ")}, or write its layout by hand in TypeScript.`,
    explain: "model_type names the family of a checkpoint in the Transformers library. Each family that can be imported has an importer, which knows its config keys, its tensor names and its mathematics.",
  }),
  "missing-config-key": define<{ key: string }>({
    severity: "error",
    message: ({ key }) => `config.json lacks ${key}.`,
    help: ({ key }) => `Download config.json again, or add ${key} with the value the checkpoint was trained with.`,
    explain: "The key decides the shape of the model or which mixer stands in which layer. Every published config of the family has it, so it is not guessed.",
  }),
  "config-type": define<{ key: string; found: string; expected: string }>({
    severity: "error",
    message: ({ key, found, expected }) => `${key} is ${found} in config.json; it must be ${expected}.`,
    help: ({ key, expected }) => `Set ${key} to ${expected}.`,
    explain: "The value of a config key has another type or lies outside its range.",
  }),
  "unsupported-config-value": define<{ key: string; found: string; supported: readonly string[] }>({
    severity: "error",
    message: ({ key, found }) => `${key} is ${found} in config.json, which is not supported.`,
    help: ({ key, supported }) => `Supported for ${key}: ${supported.join(", ")}. Give a checkpoint that uses one of these.`,
    explain: "The value asks for mathematics that this importer can't express. It is refused, because importing the rest would give a model that runs and is wrong.",
  }),
  "contradictory-config": define<{ keys: readonly string[]; problem: string; fix: string }>({
    severity: "error",
    message: ({ keys, problem }) => `config.json contradicts itself (${keys.join(", ")}): ${problem}.`,
    help: ({ fix }) => fix,
    explain: "Two or more config keys can't be true together. The config was edited, or belongs to another checkpoint.",
  }),
  "expand-overruled": define<{ expand: number; hiddenSize: number; intermediateSize: number }>({
    severity: "warning",
    message: ({ expand, hiddenSize, intermediateSize }) =>
      `expand ${expand} · hidden_size ${hiddenSize} is not intermediate_size ${intermediateSize}; intermediate_size is used, as in Transformers.`,
    help: ({ hiddenSize, intermediateSize }) => `Set expand to ${intermediateSize / hiddenSize} to silence this.`,
    explain: "Published Falcon-Mamba configs say expand 16 where the weights are 2 · hidden_size wide. Transformers lets intermediate_size win, and so does the importer.",
  }),
  "unknown-config-key": define<{ key: string; value: string; modelType: string }>({
    severity: "error",
    message: ({ key, value, modelType }) => `config.json sets ${key} to ${value}, which the importer of ${modelType} does not know.`,
    help: () => "If the key does not change what the model computes, import with --allow-unknown-keys.",
    explain: "Every key of a config is used, or ignored for a stated reason. A key nobody knows could change the forward pass, and a model that runs and is wrong is worse than one that is refused; so it is an error until you say that it may be ignored (--allow-unknown-keys).",
  }),
  "unknown-config-key-ignored": define<{ key: string; value: string }>({
    severity: "warning",
    message: ({ key, value }) => `config.json sets ${key} to ${value}; it is unknown and was ignored, as asked.`,
    help: () => "Compare the model's output with a reference (`layerweave verify`) before you rely on it.",
    explain: "Unknown config keys were allowed. The key may change the forward pass in the original implementation; here it does not.",
  }),
});
