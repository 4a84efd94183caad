#define LAYERWEAVE_ISA avx2
#define LAYERWEAVE_LANES 8
#define LAYERWEAVE_TILE_ROWS 6
#define LAYERWEAVE_STATE_CHUNK 4
#include "all_kernels.h"
