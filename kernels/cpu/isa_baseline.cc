#define LAYERWEAVE_ISA baseline
#define LAYERWEAVE_LANES 4
#define LAYERWEAVE_TILE_ROWS 6
#define LAYERWEAVE_STATE_CHUNK 4
#include "all_kernels.h"
