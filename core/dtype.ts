/** Element types of weights, state and activations. */
export const dtypes = ["float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"] as const;
export type Dtype = (typeof dtypes)[number];

export const bytesPerElement: Readonly<Record<Dtype, number>> = {
  float32: 4,
  float16: 2,
  bfloat16: 2,
  int64: 8,
  int32: 4,
  int8: 1,
  uint8: 1,
  bool: 1,
};

/** Types a weight's elements may be stored in before they are quantised. */
export const storageDtypes = ["float32", "bfloat16", "float16"] as const;
export type StorageDtype = (typeof storageDtypes)[number];
