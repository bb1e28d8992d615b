// Which row and split a block works on, decided on the device from the lengths there, so that one CUDA graph serves
// every length: the same cut as that of _row_of in decode_attention.py. For decode_quantised.cu.

struct Work { int row, context_len, num_splits, first_item; };

__device__ __forceinline__ int ceil_div(int whole, int part) { return (whole + part - 1) / part; }
__device__ __forceinline__ int round_up(int value, int unit) { return ceil_div(value, unit) * unit; }

// The work of a block of THREADS threads; context_len 0 where there are fewer items than there could be.
__device__ Work find_work(const int* context_lens, int num_rows, int item, int num_shares, int min_split) {
    __shared__ Work found;
    __shared__ int of_warp[WARPS];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    int total = 0;
    for (int row = thread; row < num_rows; row += THREADS) total += max(context_lens[row] - 1, 0);
    total = __reduce_add_sync(ALL, total);
    if (lane == 0) of_warp[warp] = total;
    if (thread == 0) found = {0, 0, 0, 0};
    __syncthreads();
    total = 0;
    for (int each = 0; each < WARPS; ++each) total += of_warp[each];
    const int share = ceil_div(total, num_shares);
    int before = 0;
    for (int start = 0; start < num_rows; start += THREADS) {
        const int row = start + thread, context_len = row < num_rows ? context_lens[row] : 0;
        const int cached_len = max(context_len - 1, 0);
        const int split = max(round_up(max(share, ceil_div(cached_len, MAX_SPLITS)), TILE), min_split);
        const int count = context_len > 0 ? max(ceil_div(cached_len, split), 1) : 0;
        int end = count;
        for (int distance = 1; distance < 32; distance *= 2) {
            const int other = __shfl_up_sync(ALL, end, distance);
            if (lane >= distance) end += other;
        }
        __syncthreads();
        if (lane == 31) of_warp[warp] = end;
        __syncthreads();
        int all = 0;
        for (int each = 0; each < WARPS; ++each) {
            if (each < warp) end += of_warp[each];
            all += of_warp[each];
        }
        end += before;
        before += all;
        if (end - count <= item && item < end) found = {row, context_len, count, end - count};
    }
    __syncthreads();
    return found;
}
