// Base conversion in the coefficient domain, from the FROM limbs `first_from` on to the limbs `first_to` on. One coefficient of
// all limbs an invocation: a residue is read once however many limbs it is converted to.
//
// Constant: FROM, at most 32.
//
// CPU twin: `CpuBackend::base_convert`.

struct Params {
    log_n: u32,
    polys: u32,
    first_from: u32,
    first_to: u32,
    to: u32,
    grid_x: u32,
}

#include "lib/params.wgsl"
#include "lib/grid.wgsl"
#include "lib/modular.wgsl"
#include "lib/convert.wgsl"

@group(0) @binding(1) var<storage, read> limbs: array<Limb>;
@group(0) @binding(2) var<storage, read> conversions: array<u32>;
// [polys][FROM][N]
@group(0) @binding(3) var<storage, read> x: array<u32>;
// [polys][to][N]
@group(0) @binding(4) var<storage, read_write> result: array<u32>;

@compute @workgroup_size(256)
fn base_convert(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = item_index(workgroup, local);
    let poly = i >> params.log_n;
    if (poly >= params.polys) {
        return;
    }
    let coefficient = i & ((1u << params.log_n) - 1u);
    var y: array<u32, FROM>;
    // The fraction is the same for every limb; the sum is not used here.
    var fraction = conversion_start();
    for (var k = 0u; k < FROM; k++) {
        let residue = x[((poly * FROM + k) << params.log_n) + coefficient];
        y[k] = conversion_factor(residue, params.first_from + k, 2u * k);
        fraction = conversion_add(fraction, y[k], limbs[params.first_from + k], 0u);
    }
    for (var target_index = 0u; target_index < params.to; target_index++) {
        let m = limbs[params.first_to + target_index];
        let at = target_words(FROM, target_index);
        var sum = acc_from(0u);
        for (var k = 0u; k < FROM; k++) {
            if (k == ACC_PRODUCTS) {
                sum = acc_from(acc_reduce(sum, m));
            }
            sum = acc_add_product(sum, y[k], conversions[at + 2u + k]);
        }
        let converted = conversion_end(Conversion(sum, fraction.fraction, fraction.whole), at, m);
        result[((poly * params.to + target_index) << params.log_n) + coefficient] = converted;
    }
}
