// The inner product of a hybrid key switch: result[poly][part][j] = sum_i digits[poly][i][j] * key[i][part][j] in the NTT
// domain, all digits with one reduction for every 16 products. One coefficient of both parts an invocation.
//
// The other steps are fused into their neighbours: the digits' base conversion is the DIGITS form of the forward transform's
// load (ntt.wgsl), and mod-down after the inverse transform is mod_switch.wgsl by one limb.
//
// CPU twin: `CpuBackend::key_switch`.

struct Params {
    log_n: u32,
    // Data limbs, which is the number of digits; the key has one limb more.
    digits: u32,
    polys: u32,
    grid_x: u32,
}

#include "lib/params.wgsl"
#include "lib/grid.wgsl"
#include "lib/modular.wgsl"

@group(0) @binding(1) var<storage, read> limbs: array<Limb>;
// [polys][digits][digits + 1][N]
@group(0) @binding(2) var<storage, read> digits: array<u32>;
// [digits][2][digits + 1][N]
@group(0) @binding(3) var<storage, read> key: array<u32>;
// [polys][2][digits + 1][N]
@group(0) @binding(4) var<storage, read_write> result: array<u32>;

@compute @workgroup_size(256)
fn inner_product(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = item_index(workgroup, local);
    let coefficient = i & ((1u << params.log_n) - 1u);
    let row = i >> params.log_n;
    let all_limbs = params.digits + 1u;
    let limb = row % all_limbs;
    let poly = row / all_limbs;
    if (poly >= params.polys) {
        return;
    }
    let m = limbs[limb];
    let stride = all_limbs << params.log_n;
    let at = (limb << params.log_n) + coefficient;
    var d = poly * params.digits * stride + at;
    var k = at;
    var acc0 = acc_from(0u);
    var acc1 = acc_from(0u);
    var done = 0u;
    while (done < params.digits) {
        let stop = min(done + ACC_PRODUCTS, params.digits);
        for (; done < stop; done++) {
            let digit = digits[d];
            acc0 = acc_add_product(acc0, digit, key[k]);
            acc1 = acc_add_product(acc1, digit, key[k + stride]);
            d += stride;
            k += 2u * stride;
        }
        if (done < params.digits) {
            acc0 = acc_from(acc_reduce(acc0, m));
            acc1 = acc_from(acc_reduce(acc1, m));
        }
    }
    let out = poly * 2u * stride + at;
    result[out] = acc_reduce(acc0, m);
    result[out + stride] = acc_reduce(acc1, m);
}
