// Stream-K (Osama et al., 2023): which cluster sums up which steps of which tiles, where there are rarely as many tiles as
// multiprocessors.
//
// All steps of the tiles that do not fill whole waves stand in one row, of which each cluster gets an equal run. Whoever
// has a tile's first inputs finishes it; the others hand it their sums. A cluster does that for the
// tile in which its run begins, so first of all, and finishes the tile in which its run ends, so last of all: nobody waits
// long. Runs are given out from the last cluster of the grid to the first, so that clusters wait only for those in front of
// them in the grid, which were started before them.
// Included where SHARERS (blocks that work on neighbouring tiles), SHARES_WEIGHTS and PARTS (blocks that divide a tile's
// inputs) are defined.

// Which steps of which tiles are whose. A tile is that of all sharers, of which each has its own rows or tokens.
struct Division {
    int num_clusters, num_waves, num_steps, num_row_tiles, num_token_tiles, group_tiles;

    __device__ __forceinline__ int rest_begin(int cluster) const {  // of its run through the steps of the last tiles
        const int rest = num_row_tiles * num_token_tiles - num_waves * num_clusters;
        return (int)((long long)cluster * rest * num_steps / num_clusters);
    }
};

struct Work {
    int tile, begin, end;  // a cluster's steps [begin, end) of a tile
    int first, last;       // of them, this block's [first, last)
    int wave, rest;        // what comes next

    __device__ __forceinline__ Work(const Division& all, int cluster) : wave(0), rest(all.rest_begin(cluster)) {}

    __device__ __forceinline__ bool next(const Division& all, int cluster, int part) {
        if (wave < all.num_waves) {
            tile = wave++ * all.num_clusters + cluster;
            begin = 0;
            end = all.num_steps;
        } else {
            const int left = all.rest_begin(cluster + 1) - rest;
            if (left <= 0) return false;
            tile = all.num_waves * all.num_clusters + rest / all.num_steps;
            begin = rest % all.num_steps;
            end = min(all.num_steps, begin + left);
            rest += end - begin;
        }
        first = begin + part * (end - begin) / PARTS;
        last = begin + (part + 1) * (end - begin) / PARTS;
        return true;
    }
};

// The place of a sharer's tile: its rows, and its tokens.
__device__ __forceinline__ void find_tile(const Division& all, int tile, int sharer, int& row_tile, int& token_tile) {
    const int group = tile / (all.group_tiles * all.num_row_tiles);
    const int width = min(all.group_tiles, all.num_token_tiles - group * all.group_tiles);
    const int within = tile - group * all.group_tiles * all.num_row_tiles;
    row_tile = within / width;
    token_tile = group * all.group_tiles + within % width;
    if (SHARES_WEIGHTS) token_tile = token_tile * SHARERS + sharer;
    else row_tile = row_tile * SHARERS + sharer;
}
