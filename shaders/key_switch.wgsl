// The inner product of a hybrid key switch: result[r][part][j] = sum_i digits[input][i][j] * keys[key][i][part][j] in the NTT
// domain, all digits with one reduction for every 16 products. One coefficient of both parts of TILE results that share a
// key an invocation, so that a word of a key is read once for TILE results.
//
// A result reads its digits through X -> X^g, which in the NTT domain is a permutation that maps aligned blocks of every
// power of two to such blocks: reads stay within the cache lines of neighbours.
//
// The other steps are fused into their neighbours: the digits are made by the DIGITS form of the forward transform's load
// (ntt.wgsl); mod-down after the inverse transform, with what a rotation adds, is mod_switch.wgsl.
//
// Constant: TILE. Flag: ACCUMULATE: adds to the result, for digits that come in parts.
//
// CPU twin: `KeySwitch::inner_product`.

struct Params {
    log_n: u32,
    // Rows of a digit; row r is modulo limb r, `skip` limbs further from row `data` on.
    rows: u32,
    data: u32,
    skip: u32,
    // Limbs of a key.
    all: u32,
    digits: u32,
    // Digits from one key to the next.
    key_digits: u32,
    // Tiles of this launch, from `first_tile` of the table on.
    tiles: u32,
    first_tile: u32,
    grid_x: u32,
}

#include "lib/params.wgsl"
#include "lib/grid.wgsl"
#include "lib/modular.wgsl"
#include "lib/rows.wgsl"
#include "lib/galois.wgsl"

@group(0) @binding(1) var<storage, read> limbs: array<Limb>;
// [inputs][digits][rows][N]
@group(0) @binding(2) var<storage, read> digits: array<u32>;
// [keys][key_digits][2][all][N]
@group(0) @binding(3) var<storage, read> keys: array<u32>;
// [results][2][rows][N]
@group(0) @binding(4) var<storage, read_write> result: array<u32>;
// A tile is its key, then TILE of (input, Galois element, result).
@group(0) @binding(5) var<storage, read> tiles: array<u32>;

@compute @workgroup_size(256)
fn inner_product(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = item_index(workgroup, local);
    let coefficient = i & ((1u << params.log_n) - 1u);
    let wide = i >> params.log_n;
    let row = wide % params.rows;
    let tile = wide / params.rows;
    if (tile >= params.tiles) {
        return;
    }
    let limb = limb_of_row(row);
    let m = limbs[limb];
    let digit_stride = params.rows << params.log_n;
    let part_stride = params.all << params.log_n;

    // A last tile that overhangs repeats its last result.
    var sources: array<u32, TILE>;
    var outs: array<u32, TILE>;
    let entry = (params.first_tile + tile) * (1u + 3u * TILE);
    let key = tiles[entry];
    for (var r = 0u; r < TILE; r++) {
        let input = tiles[entry + 3u * r + 1u];
        let source = galois_source(coefficient, tiles[entry + 3u * r + 2u], params.log_n);
        sources[r] = input * params.digits * digit_stride + (row << params.log_n) + source;
        outs[r] = tiles[entry + 3u * r + 3u];
    }

    var acc0: array<Acc, TILE>;
    var acc1: array<Acc, TILE>;
    for (var r = 0u; r < TILE; r++) {
        acc0[r] = acc_from(0u);
        acc1[r] = acc_from(0u);
    }
    var k = key * params.key_digits * 2u * part_stride + (limb << params.log_n) + coefficient;
    var at = 0u;
    var done = 0u;
    while (done < params.digits) {
        let stop = min(done + ACC_PRODUCTS, params.digits);
        for (; done < stop; done++) {
            let key0 = keys[k];
            let key1 = keys[k + part_stride];
            for (var r = 0u; r < TILE; r++) {
                let digit = digits[sources[r] + at];
                acc0[r] = acc_add_product(acc0[r], digit, key0);
                acc1[r] = acc_add_product(acc1[r], digit, key1);
            }
            at += digit_stride;
            k += 2u * part_stride;
        }
        if (done < params.digits) {
            for (var r = 0u; r < TILE; r++) {
                acc0[r] = acc_from(acc_reduce(acc0[r], m));
                acc1[r] = acc_from(acc_reduce(acc1[r], m));
            }
        }
    }
    for (var r = 0u; r < TILE; r++) {
        if (r > 0u && outs[r] == outs[max(r, 1u) - 1u]) {
            continue;
        }
        let out = (outs[r] * 2u * params.rows + row) * (1u << params.log_n) + coefficient;
        var sum0 = acc_reduce(acc0[r], m);
        var sum1 = acc_reduce(acc1[r], m);
#ifdef ACCUMULATE
        sum0 = add_mod(sum0, result[out], m.p);
        sum1 = add_mod(sum1, result[out + digit_stride], m.p);
#endif
        result[out] = sum0;
        result[out + digit_stride] = sum1;
    }
}
