// Modulus switch in the coefficient domain: drops limbs from `limbs` down to `kept`, the last one first, each with exact
// rounding: x becomes (x - [x]_p) / p, [x]_p centred. One coefficient of one polynomial, all limbs, an invocation.
// With one limb to drop this is the mod-down of a key switch.
//
// Constant: MAX_DROPPED, at least limbs - kept.
//
// CPU twin: `CpuBackend::mod_switch`.

struct Params {
    log_n: u32,
    limbs: u32,
    kept: u32,
    // Moduli of the ring: row length of `inverses`.
    ring_limbs: u32,
    polys: u32,
    grid_x: u32,
}

#include "lib/params.wgsl"
#include "lib/grid.wgsl"
#include "lib/modular.wgsl"

@group(0) @binding(1) var<storage, read> limbs: array<Limb>;
// [dropped limb][other limb]: (p_dropped^-1 mod p_other, Shoup companion)
@group(0) @binding(2) var<storage, read> inverses: array<vec2<u32>>;
// [polys][limbs][N]
@group(0) @binding(3) var<storage, read> x: array<u32>;
// [polys][kept][N]
@group(0) @binding(4) var<storage, read_write> result: array<u32>;

// (value - [top]) / p_from mod p_to, `top` the residue modulo the limb that goes.
fn drop_limb(value: u32, top: u32, gone: u32, other: u32) -> u32 {
    let p_gone = limbs[gone].p;
    let m = limbs[other];
    let negative = top > (p_gone >> 1u);
    let magnitude = reduce_2p(reduce_word_lazy(select(top, p_gone - top, negative), m), m.p);
    let difference = select(sub_mod(value, magnitude, m.p), add_mod(value, magnitude, m.p), negative);
    return reduce_2p(mul_shoup(difference, inverses[gone * params.ring_limbs + other], m.p), m.p);
}

@compute @workgroup_size(256)
fn mod_switch(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = item_index(workgroup, local);
    let poly = i >> params.log_n;
    if (poly >= params.polys) {
        return;
    }
    let coefficient = i & ((1u << params.log_n) - 1u);
    let from_poly = ((poly * params.limbs) << params.log_n) + coefficient;
    let to_poly = ((poly * params.kept) << params.log_n) + coefficient;
    // Residues of the limbs that go, each as it stands when its turn comes, the first to go first.
    var tops: array<u32, MAX_DROPPED>;
    let drops = params.limbs - params.kept;
    for (var turn = 0u; turn < drops; turn++) {
        let gone = params.limbs - 1u - turn;
        var value = x[from_poly + (gone << params.log_n)];
        for (var earlier = 0u; earlier < turn; earlier++) {
            value = drop_limb(value, tops[earlier], params.limbs - 1u - earlier, gone);
        }
        tops[turn] = value;
    }
    for (var limb = 0u; limb < params.kept; limb++) {
        var value = x[from_poly + (limb << params.log_n)];
        for (var turn = 0u; turn < drops; turn++) {
            value = drop_limb(value, tops[turn], params.limbs - 1u - turn, limb);
        }
        result[to_poly + (limb << params.log_n)] = value;
    }
}
