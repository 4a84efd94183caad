#define LAYERWEAVE_ISA avx512vnni
#define LAYERWEAVE_VNNI
#define LAYERWEAVE_LANES 16
#define LAYERWEAVE_TILE_ROWS 12
#define LAYERWEAVE_STATE_CHUNK 8
#include "all_kernels.h"
