// Compiles and links only with a toolkit that is whole and fits the system's compiler and C library.
#include <cublas_v2.h>
#include <cub/version.cuh>
#include <cuda.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>

__global__ void scale(half *values, float factor) {
    values[threadIdx.x] = __float2half(__half2float(values[threadIdx.x]) * rsqrtf(factor) + sinpif(factor));
}

int main() {
    cublasHandle_t handle;
    if (cuInit(0) != CUDA_SUCCESS || cublasCreate(&handle) != CUBLAS_STATUS_SUCCESS) {
        return 1;
    }
    half *values;
    cudaMalloc(&values, 32 * sizeof(half));
    scale<<<1, 32>>>(values, 2.0f);
    return cudaDeviceSynchronize() == cudaSuccess && cublasDestroy(handle) == CUBLAS_STATUS_SUCCESS ? 0 : 1;
}
