//! A static audit of the kernels: what one invocation computes, loads, stores and waits for, counted from the composed WGSL
//! without a device, so that a change of a kernel shows in figures anywhere.
//!
//! An operation counts where an operand depends on the invocation or on data; what follows from constants, parameters and
//! counters of loops alone is taken to be folded. Conversions, address arithmetic of the hardware and moves between
//! registers do not count, nor does what was computed before from the same values; a product with a power of two is a shift. A
//! branch on data counts by its dearer side, a guard that ends an invocation as not taken. A
//! compiler may share or drop some of what is counted here (a structure counts as loaded whole).

mod walk;

use std::collections::BTreeMap;

use serde::Serialize;
use wgpu::naga::{self, valid};

use super::{
    ProductForm,
    shaders::{GemmForm, Kernel, Transform, Variant, WORKGROUP, ntt_passes},
};
use crate::engine::{EngineError, Result};

/// What one invocation does.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize)]
pub struct Cost {
    /// 32-bit additions and subtractions.
    pub adds: u64,
    /// 32-bit multiplications.
    pub multiplies: u64,
    /// 64-bit additions and subtractions (two 32-bit ones on most GPUs).
    pub wide_adds: u64,
    /// 64-bit multiplications; of two widened words in these kernels (a low and a high product on most GPUs).
    pub wide_multiplies: u64,
    /// Divisions and remainders.
    pub divisions: u64,
    /// Sums of four products of bytes (`dot4U8Packed` and its signed form).
    pub packed_dots: u64,
    /// Shifts, bit operations, comparisons, selections, minima.
    pub other: u64,
    /// 32-bit words loaded from each storage buffer.
    pub read: BTreeMap<String, u64>,
    /// 32-bit words stored to each storage buffer.
    pub written: BTreeMap<String, u64>,
    /// Words loaded from workgroup memory.
    pub workgroup_reads: u64,
    /// Words stored to workgroup memory.
    pub workgroup_writes: u64,
    /// Barriers.
    pub barriers: u64,
}

impl Cost {
    /// 32-bit integer operations, 64-bit additions and products as two.
    pub fn operations(&self) -> u64 {
        let wide = 2 * (self.wide_adds + self.wide_multiplies);
        self.adds + self.multiplies + wide + self.divisions + self.packed_dots + self.other
    }

    /// Bytes loaded from and stored to storage buffers.
    pub fn storage_bytes(&self) -> u64 {
        4 * self.read.values().chain(self.written.values()).sum::<u64>()
    }
}

/// One launch of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KernelAudit {
    /// The operation, as in [`crate::engine::Op`], with its size: `ntt_forward`.
    pub operation: &'static str,
    /// Position of this launch among those of the operation, from 1.
    pub launch: usize,
    /// Entry point of the shader.
    pub entry: &'static str,
    /// Product form.
    pub form: &'static str,
    /// Ring dimension.
    pub n: u32,
    /// The other sizes that the counts are for, in words: `5 digits, 6 limbs`.
    pub shape: &'static str,
    /// Invocations for one unit of work: a transform of one limb of one polynomial; else, what `shape` says.
    pub invocations: u64,
    /// Coefficients of one limb that the unit gives.
    pub coefficients: u64,
    /// Invocations a workgroup.
    pub workgroup: u32,
    /// Workgroup memory in bytes.
    pub workgroup_bytes: u64,
    /// What one invocation does.
    pub cost: Cost,
    /// What the counts leave out.
    pub remarks: Vec<String>,
}

impl KernelAudit {
    /// 32-bit integer operations for a coefficient, as in [`Cost::operations`].
    pub fn operations_per_coefficient(&self) -> f64 {
        (self.cost.operations() * self.invocations) as f64 / self.coefficients as f64
    }

    /// Bytes of storage loaded and stored for a coefficient.
    pub fn bytes_per_coefficient(&self) -> f64 {
        (self.cost.storage_bytes() * self.invocations) as f64 / self.coefficients as f64
    }
}

/// A launch to audit.
struct Case {
    operation: &'static str,
    launch: usize,
    n: u32,
    shape: &'static str,
    variant: Variant,
    parameters: Vec<(&'static str, u32)>,
    invocations: u64,
    coefficients: u64,
}

/// The audit of every kernel of interest in both product forms: transforms of N = 4096 to 65536 with 16 KiB of workgroup
/// memory, and at N = 8192 the kernels of products, key switches and modulus switches.
///
/// # Errors
/// [`EngineError::Validation`] when a shader does not parse, which the tests rule out.
pub fn audit() -> Result<Vec<KernelAudit>> {
    let mut audits = Vec::new();
    for form in [ProductForm::U64, ProductForm::Split16] {
        for case in cases(form) {
            audits.push(examine(&case, form)?);
        }
    }
    Ok(audits)
}

/// log2 of the words of 16 KiB, the workgroup memory that every adapter has.
const LOG_BLOCK: u32 = 12;

fn cases(form: ProductForm) -> Vec<Case> {
    let mut cases = Vec::new();
    let transforms = [
        ("ntt_forward", Transform::Forward),
        ("ntt_inverse", Transform::Inverse),
        ("key_switch: digits", Transform::ForwardDigits(1)),
    ];
    for log_n in [12, 13, 14, 16] {
        for (operation, transform) in transforms {
            let passes = ntt_passes(transform, log_n, LOG_BLOCK);
            for (i, pass) in passes.into_iter().enumerate() {
                let threads = if pass.block { 1 << (LOG_BLOCK - 4) } else { 1 };
                cases.push(Case {
                    operation,
                    launch: i + 1,
                    n: 1 << log_n,
                    shape: "one limb of one polynomial",
                    variant: pass.variant,
                    parameters: vec![
                        ("rows", 6),
                        ("limbs", 6),
                        ("data", 6),
                        ("skip", 0),
                        ("digits", 5),
                        ("first_digit", 0),
                        ("source_stride", 5),
                        ("source_first", 0),
                    ],
                    invocations: u64::from(pass.per_row * threads),
                    coefficients: 1 << log_n,
                });
            }
        }
    }
    let log_n = 13;
    let n = 1u64 << log_n;
    let one = |operation, shape, variant, parameters: &[(&'static str, u32)], invocations, coefficients| Case {
        operation,
        launch: 1,
        n: n as u32,
        shape,
        variant,
        parameters: parameters.iter().copied().chain([("log_n", log_n)]).collect(),
        invocations,
        coefficients,
    };
    let pointwise = [("log_vectors", log_n - 2), ("limbs", 5)];
    for (operation, kernel) in
        [("add", Kernel::Add), ("sub", Kernel::Sub), ("mul", Kernel::Mul), ("mul_scalar", Kernel::MulScalar)]
    {
        cases.push(one(operation, "one limb", Variant::plain(kernel), &pointwise, n / 4, n));
    }
    cases.extend([
        one(
            "matmul_plain",
            "64 inputs, 4 outputs, one limb of 5",
            Variant::plain(Kernel::MatmulPlain),
            &[("limbs", 5), ("groups", 1), ("inputs", 64), ("outputs", 4), ("accumulate", 0)],
            n,
            8 * n,
        ),
        one(
            "key_switch: inner product",
            "5 digits, 4 rotations that share a key, one limb of 6",
            Variant::inner_product(4, false),
            &[("rows", 6), ("data", 6), ("skip", 0), ("all", 6), ("digits", 5), ("key_digits", 5), ("tiles", 1)],
            n,
            8 * n,
        ),
        one(
            "base_convert",
            "2 limbs to 6",
            Variant::base_convert(2),
            &[("polys", 1), ("first_from", 0), ("first_to", 0), ("to", 6)],
            n,
            6 * n,
        ),
        one(
            "mod_switch",
            "6 limbs to 5",
            Variant::mod_switch(1, false),
            &[("limbs", 6), ("kept", 5), ("data", 6), ("skip", 0), ("ring_limbs", 6), ("polys", 1)],
            n,
            5 * n,
        ),
    ]);
    for (operation, gemm) in [("modular_gemm: wide", GemmForm::Wide), ("modular_gemm: bytes", GemmForm::Dot)] {
        let (variant, outputs, words) = Variant::modular_gemm(gemm, form);
        let mut case = one(
            operation,
            "96 inputs, a workgroup's share of outputs and coefficients",
            variant,
            &[("limbs", 5), ("inputs", 96), ("tiles", 1), ("weights_start", 0), ("weights_stride", 96)],
            u64::from(WORKGROUP),
            (outputs * words) as u64,
        );
        case.parameters.extend([("words", 5 * n as u32), ("outputs", outputs as u32), ("accumulate", 0)]);
        cases.push(case);
    }
    cases.push(one(
        "expand",
        "128 values, 5 limbs",
        Variant::plain(Kernel::Expand),
        &[("limbs", 5), ("polys", 1), ("count", 128), ("wide", 0)],
        n,
        5 * n,
    ));
    cases
}

fn examine(case: &Case, form: ProductForm) -> Result<KernelAudit> {
    let failed = |reason: String| EngineError::Validation { operation: "audit", reason };
    let entry = case.variant.kernel.entry();
    let source = case.variant.source(form, true).map_err(|e| failed(e.to_string()))?;
    let module = naga::front::wgsl::parse_str(&source).map_err(|e| failed(e.emit_to_string(&source)))?;
    let capabilities = valid::Capabilities::IMMEDIATES | valid::Capabilities::SHADER_INT64;
    let info = valid::Validator::new(valid::ValidationFlags::all(), capabilities)
        .validate(&module)
        .map_err(|e| failed(e.emit_to_string(&source)))?;
    let index = module.entry_points.iter().position(|point| point.name == entry);
    let index = index.ok_or_else(|| failed(format!("no entry point {entry}")))?;
    let (cost, remarks) = walk::walk(&module, &info, index, &case.parameters);
    let used = info.get_entry_point(index);
    let shared = module
        .global_variables
        .iter()
        .filter(|(handle, global)| global.space == naga::AddressSpace::WorkGroup && !used[*handle].is_empty());
    Ok(KernelAudit {
        operation: case.operation,
        launch: case.launch,
        entry,
        form: form.name(),
        n: case.n,
        shape: case.shape,
        invocations: case.invocations,
        coefficients: case.coefficients,
        workgroup: module.entry_points[index].workgroup_size.iter().product(),
        workgroup_bytes: shared.map(|(_, g)| u64::from(module.types[g.ty].inner.size(module.to_ctx()))).sum(),
        cost,
        remarks: remarks.into_iter().collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The counts of a small kernel, as counted by hand.
    #[test]
    fn counts_what_depends_on_the_invocation() {
        let source = "
            struct Params { count: u32, other: u32 }
            var<immediate> params: Params;
            @group(0) @binding(0) var<storage, read> x: array<vec4<u32>>;
            @group(0) @binding(1) var<storage, read_write> y: array<u32>;
            var<workgroup> shared_words: array<u32, 64>;
            fn twice(v: ptr<function, array<u32, 4>>, k: u32, scale: u32) {
                if (scale > 1u) { (*v)[k] = (*v)[k] * scale; }
            }
            @compute @workgroup_size(64)
            fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(local_invocation_index) local: u32) {
                if (id.x >= params.other) { return; }           // 1 other
                let again = id.x >= params.other;               // nothing
                let twice_id = id.x * 2u + select(0u, 1u, again); // 1 other, 1 add, 1 other
                var sum = twice_id;
                let step = params.count * 2u;                   // known
                for (var i = 0u; i < params.count; i++) {       // three times
                    let a = x[id.x + i * step];                 // 3 x (1 add, 4 words)
                    sum += a.x * a.y;                           // 3 x (1 multiply, 1 add)
                }
                var v: array<u32, 4>;
                v[0] = sum;
                twice(&v, 0u, 1u);                              // nothing
                twice(&v, 0u, 3u);                              // 1 multiply
                shared_words[local] = v[0];
                workgroupBarrier();
                if (sum > 5u) { y[id.x] = min(sum, 7u); }       // 2 other, 1 word
                y[id.x] = u32((u64(sum) * u64(sum)) >> 32u) + shared_words[local ^ 1u]; // 1 wide, 2 other, 1 add, 1 word
                while (sum < y[0]) { sum += 1u; }               // once: 1 word, 1 other (and its negation), 1 add
            }";
        let module = naga::front::wgsl::parse_str(source).unwrap();
        let capabilities = valid::Capabilities::IMMEDIATES | valid::Capabilities::SHADER_INT64;
        let info = valid::Validator::new(valid::ValidationFlags::all(), capabilities).validate(&module).unwrap();
        let (cost, remarks) = walk::walk(&module, &info, 0, &[("count", 3)]);
        assert_eq!((cost.adds, cost.multiplies, cost.wide_multiplies, cost.wide_adds), (1 + 3 + 3 + 1 + 1, 4, 1, 0));
        assert_eq!((cost.read["x"], cost.read["y"], cost.written["y"]), (12, 1, 2));
        assert_eq!((cost.workgroup_reads, cost.workgroup_writes, cost.barriers), (1, 1, 1));
        assert_eq!(cost.divisions, 0);
        assert!((8..=10).contains(&cost.other), "{}", cost.other);
        assert_eq!(remarks.into_iter().collect::<Vec<_>>(), ["a loop of unknown length counts once"]);
    }

    #[test]
    fn every_case_is_counted_to_its_end() {
        for audit in audit().unwrap() {
            // How often an invocation loads weights into workgroup memory depends on which one it is.
            let remarks = usize::from(audit.operation.starts_with("modular_gemm"));
            assert_eq!(audit.remarks.len(), remarks, "{audit:?}");
            assert!(audit.cost.operations() > 0 && audit.cost.storage_bytes() > 0, "{audit:?}");
        }
    }

    /// Every term of every output is a product.
    #[test]
    fn the_product_with_small_integers() {
        let all = audit().unwrap();
        let find = |operation, form| all.iter().find(|a| (a.operation, a.form) == (operation, form)).unwrap();
        let wide = find("modular_gemm: wide", "u64");
        assert!(wide.cost.wide_multiplies * wide.invocations >= 96 * wide.coefficients, "{wide:?}");
        for form in ["u64", "split16"] {
            let bytes = find("modular_gemm: bytes", form);
            // Four bytes of x times two of a weight, four terms at a time; and the bytes of x alone.
            let outputs = bytes.coefficients / bytes.invocations;
            assert_eq!(bytes.cost.packed_dots, 96 * (2 * outputs + 1), "{bytes:?}");
        }
    }

    /// Progress of the transform shows here: change the figures with the kernel.
    #[test]
    fn the_forward_transform_of_4096() {
        let all = audit().unwrap();
        let find = |form| all.iter().find(|a| (a.operation, a.n, a.form) == ("ntt_forward", 4096, form)).unwrap();
        let (fast, split) = (find("u64"), find("split16"));
        assert_eq!((fast.workgroup, fast.invocations, fast.workgroup_bytes), (256, 256, 16384));
        // 12 stages of 8 butterflies: a product by Shoup has two low products and a high one. One more for the index.
        assert_eq!((fast.cost.multiplies, fast.cost.wide_multiplies), (2 * 96 + 1, 96));
        assert_eq!((split.cost.multiplies, split.cost.wide_multiplies), (6 * 96 + 1, 0));
        assert_eq!((fast.cost.workgroup_reads, fast.cost.workgroup_writes, fast.cost.barriers), (48, 48, 3));
        assert_eq!((fast.cost.read["x"], fast.cost.written["result"]), (16, 16));
        assert_eq!((fast.cost.operations(), split.cost.operations()), (1732, 2930));
        assert_eq!(
            (fast.operations_per_coefficient(), fast.bytes_per_coefficient()),
            (1732.0 / 16.0, 4.0 * 144.0 / 16.0)
        );
    }
}
