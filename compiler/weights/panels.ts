// The layout in which the CUDA decode kernels stream a matrix, kernels/include/packed_weights.h.

/** Rows of a panel and columns of a chunk. */
export const panelRows = 32;
export const chunkColumns = 32;

const padded = (extent: number, to: number) => Math.ceil(extent / to) * to;

/** Extents of a packed matrix [rows, columns], padding included. */
export const packedShape = ([rows = 0, columns = 0]: readonly number[]): readonly [number, number] => [padded(rows, panelRows), padded(columns, chunkColumns)];

/** Extents of a packed pair of matrices [features, columns], of which 16 rows each share a panel. */
export const packedPairShape = ([features = 0, columns = 0]: readonly number[]): readonly [number, number] => packedShape([2 * padded(features, panelRows / 2), columns]);
