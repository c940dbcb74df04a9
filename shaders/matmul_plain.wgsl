// Plaintext-ciphertext matrix product in the NTT domain:
// result[g][o][c] = sum_i ct[g][i][c] * plain[g][o][i], one coefficient of OUTPUT_TILE outputs and both components an
// invocation. Sums are lazy: 16 products of 60 bits between reductions.
//
// CPU twin: `CpuBackend::matmul_plain`.

struct Params {
    log_n: u32,
    limbs: u32,
    groups: u32,
    inputs: u32,
    outputs: u32,
    // 1: add to what `result` holds (a launch per part of the inputs).
    accumulate: u32,
    grid_x: u32,
}

#include "lib/params.wgsl"
#include "lib/grid.wgsl"
#include "lib/modular.wgsl"

const OUTPUT_TILE: u32 = 4u;

@group(0) @binding(1) var<storage, read> limbs: array<Limb>;
// [groups][inputs][2][limbs][N]
@group(0) @binding(2) var<storage, read> ct: array<u32>;
// [groups][outputs][inputs][limbs][N]
@group(0) @binding(3) var<storage, read> plain: array<u32>;
// [groups][outputs][2][limbs][N]
@group(0) @binding(4) var<storage, read_write> result: array<u32>;

fn store(index: u32, acc: Acc, m: Limb) {
    var r = acc_reduce(acc, m);
    if (params.accumulate != 0u) {
        r = add_mod(r, result[index], m.p);
    }
    result[index] = r;
}

@compute @workgroup_size(256)
fn matmul_plain(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = item_index(workgroup, local);
    let coefficient = i & ((1u << params.log_n) - 1u);
    var rest = i >> params.log_n;
    let limb = rest % params.limbs;
    rest /= params.limbs;
    let tiles = (params.outputs + OUTPUT_TILE - 1u) / OUTPUT_TILE;
    let tile = rest % tiles;
    let group = rest / tiles;
    if (group >= params.groups) {
        return;
    }
    let m = limbs[limb];
    let poly = params.limbs << params.log_n;
    let at = (limb << params.log_n) + coefficient;

    // The last tile repeats its last output where it overhangs, and stores it once.
    let last = params.outputs - 1u;
    let first = tile * OUTPUT_TILE;
    let o1 = min(first + 1u, last);
    let o2 = min(first + 2u, last);
    let o3 = min(first + 3u, last);
    let plain_group = group * params.outputs;
    var p0 = (plain_group + first) * params.inputs * poly + at;
    var p1 = (plain_group + o1) * params.inputs * poly + at;
    var p2 = (plain_group + o2) * params.inputs * poly + at;
    var p3 = (plain_group + o3) * params.inputs * poly + at;
    var c = group * params.inputs * 2u * poly + at;

    var acc00 = acc_from(0u);
    var acc01 = acc_from(0u);
    var acc10 = acc_from(0u);
    var acc11 = acc_from(0u);
    var acc20 = acc_from(0u);
    var acc21 = acc_from(0u);
    var acc30 = acc_from(0u);
    var acc31 = acc_from(0u);
    var done = 0u;
    while (done < params.inputs) {
        let stop = min(done + ACC_PRODUCTS, params.inputs);
        for (; done < stop; done++) {
            let c0 = ct[c];
            let c1 = ct[c + poly];
            let w0 = plain[p0];
            let w1 = plain[p1];
            let w2 = plain[p2];
            let w3 = plain[p3];
            acc00 = acc_add_product(acc00, c0, w0);
            acc01 = acc_add_product(acc01, c1, w0);
            acc10 = acc_add_product(acc10, c0, w1);
            acc11 = acc_add_product(acc11, c1, w1);
            acc20 = acc_add_product(acc20, c0, w2);
            acc21 = acc_add_product(acc21, c1, w2);
            acc30 = acc_add_product(acc30, c0, w3);
            acc31 = acc_add_product(acc31, c1, w3);
            c += 2u * poly;
            p0 += poly;
            p1 += poly;
            p2 += poly;
            p3 += poly;
        }
        if (done < params.inputs) {
            acc00 = acc_from(acc_reduce(acc00, m));
            acc01 = acc_from(acc_reduce(acc01, m));
            acc10 = acc_from(acc_reduce(acc10, m));
            acc11 = acc_from(acc_reduce(acc11, m));
            acc20 = acc_from(acc_reduce(acc20, m));
            acc21 = acc_from(acc_reduce(acc21, m));
            acc30 = acc_from(acc_reduce(acc30, m));
            acc31 = acc_from(acc_reduce(acc31, m));
        }
    }

    let out = (plain_group + first) * 2u * poly + at;
    store(out, acc00, m);
    store(out + poly, acc01, m);
    if (first + 1u <= last) {
        store(out + 2u * poly, acc10, m);
        store(out + 3u * poly, acc11, m);
    }
    if (first + 2u <= last) {
        store(out + 4u * poly, acc20, m);
        store(out + 5u * poly, acc21, m);
    }
    if (first + 3u <= last) {
        store(out + 6u * poly, acc30, m);
        store(out + 7u * poly, acc31, m);
    }
}
