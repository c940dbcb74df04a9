//! The typed table of shaders: sources, kernels with their bindings, and the permutations that the backend may build.

use super::preprocess::{Expanded, PreprocessError, expand};
use crate::engine::RingOperand;

/// How a 32 x 32-bit product gets its high word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProductForm {
    /// 64-bit integers in registers (`SHADER_INT64`: Vulkan, DX12, Metal).
    U64,
    /// Four 16-bit products, plain WGSL: runs everywhere.
    Split16,
}

impl ProductForm {
    /// `u64` or `split16`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::U64 => "u64",
            Self::Split16 => "split16",
        }
    }
}

/// How a product with small integers is computed; all give the same words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GemmForm {
    /// Wide products of a weight and a residue.
    Wide,
    /// Dot products of four bytes, which many adapters have in hardware.
    Dot,
}

/// Every shader source, by its path below `shaders/`.
pub(super) const SOURCES: &[(&str, &str)] = &[
    ("lib/convert.wgsl", include_str!("../../../shaders/lib/convert.wgsl")),
    ("lib/gemm_params.wgsl", include_str!("../../../shaders/lib/gemm_params.wgsl")),
    ("lib/galois.wgsl", include_str!("../../../shaders/lib/galois.wgsl")),
    ("lib/grid.wgsl", include_str!("../../../shaders/lib/grid.wgsl")),
    ("lib/modular.wgsl", include_str!("../../../shaders/lib/modular.wgsl")),
    ("lib/ntt_exchange.wgsl", include_str!("../../../shaders/lib/ntt_exchange.wgsl")),
    ("lib/ntt_load.wgsl", include_str!("../../../shaders/lib/ntt_load.wgsl")),
    ("lib/ntt_stages.wgsl", include_str!("../../../shaders/lib/ntt_stages.wgsl")),
    ("lib/params.wgsl", include_str!("../../../shaders/lib/params.wgsl")),
    ("lib/product.wgsl", include_str!("../../../shaders/lib/product.wgsl")),
    ("lib/rows.wgsl", include_str!("../../../shaders/lib/rows.wgsl")),
    ("automorphism.wgsl", include_str!("../../../shaders/automorphism.wgsl")),
    ("base_convert.wgsl", include_str!("../../../shaders/base_convert.wgsl")),
    ("ceilings.wgsl", include_str!("../../../shaders/ceilings.wgsl")),
    ("expand.wgsl", include_str!("../../../shaders/expand.wgsl")),
    ("gemm_dot.wgsl", include_str!("../../../shaders/gemm_dot.wgsl")),
    ("key_switch.wgsl", include_str!("../../../shaders/key_switch.wgsl")),
    ("matmul_plain.wgsl", include_str!("../../../shaders/matmul_plain.wgsl")),
    ("mod_switch.wgsl", include_str!("../../../shaders/mod_switch.wgsl")),
    ("modular_gemm.wgsl", include_str!("../../../shaders/modular_gemm.wgsl")),
    ("ntt.wgsl", include_str!("../../../shaders/ntt.wgsl")),
    ("pointwise.wgsl", include_str!("../../../shaders/pointwise.wgsl")),
    ("ring_gemm.wgsl", include_str!("../../../shaders/ring_gemm.wgsl")),
];

/// Invocations a workgroup of every kernel but the `*_block` transforms, which take one per 16 values.
pub(super) const WORKGROUP: u32 = 256;

/// Most words of parameters that a kernel has.
pub(super) const MOST_PARAMS: u32 = 16;

/// A kernel: an entry point of a shader file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kernel {
    ForwardBlock,
    ForwardStream,
    InverseBlock,
    InverseStream,
    Add,
    Sub,
    Mul,
    MulAccumulate,
    MulScalar,
    MatmulPlain,
    Expand,
    Automorphism,
    AutomorphismNtt,
    PackStep,
    InnerProduct,
    ModSwitch,
    BaseConvert,
    ModularGemm,
    GemmDot,
    RingGemm,
    CeilingCopy,
    CeilingProducts,
}

/// A storage buffer of a kernel: binding number and whether the kernel writes it. Binding 0 is the parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Binding {
    pub index: u32,
    pub write: bool,
}

const fn read(index: u32) -> Binding {
    Binding { index, write: false }
}

const fn write(index: u32) -> Binding {
    Binding { index, write: true }
}

impl Kernel {
    /// Source file.
    pub const fn file(self) -> &'static str {
        match self {
            Self::ForwardBlock | Self::ForwardStream | Self::InverseBlock | Self::InverseStream => "ntt.wgsl",
            Self::Add | Self::Sub | Self::Mul | Self::MulAccumulate | Self::MulScalar => "pointwise.wgsl",
            Self::MatmulPlain => "matmul_plain.wgsl",
            Self::Expand => "expand.wgsl",
            Self::Automorphism | Self::AutomorphismNtt | Self::PackStep => "automorphism.wgsl",
            Self::InnerProduct => "key_switch.wgsl",
            Self::ModSwitch => "mod_switch.wgsl",
            Self::BaseConvert => "base_convert.wgsl",
            Self::ModularGemm => "modular_gemm.wgsl",
            Self::GemmDot => "gemm_dot.wgsl",
            Self::RingGemm => "ring_gemm.wgsl",
            Self::CeilingCopy | Self::CeilingProducts => "ceilings.wgsl",
        }
    }

    /// Entry point.
    pub const fn entry(self) -> &'static str {
        match self {
            Self::ForwardBlock => "forward_block",
            Self::ForwardStream => "forward_stream",
            Self::InverseBlock => "inverse_block",
            Self::InverseStream => "inverse_stream",
            Self::Add => "add",
            Self::Sub => "sub",
            Self::Mul => "mul",
            Self::MulAccumulate => "mul_accumulate",
            Self::MulScalar => "mul_scalar",
            Self::MatmulPlain => "matmul_plain",
            Self::Expand => "expand",
            Self::Automorphism => "automorphism",
            Self::AutomorphismNtt => "automorphism_ntt",
            Self::PackStep => "pack_step",
            Self::InnerProduct => "inner_product",
            Self::ModSwitch => "mod_switch",
            Self::BaseConvert => "base_convert",
            Self::ModularGemm => "modular_gemm",
            Self::GemmDot => "gemm_dot",
            Self::RingGemm => "ring_gemm",
            Self::CeilingCopy => "ceiling_copy",
            Self::CeilingProducts => "ceiling_products",
        }
    }
}

/// A kernel with its flags and constants: what one pipeline is built from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    pub kernel: Kernel,
    pub flags: Vec<&'static str>,
    pub constants: Vec<(&'static str, u32)>,
}

impl Variant {
    /// A kernel without flags or constants.
    pub fn plain(kernel: Kernel) -> Self {
        Self { kernel, flags: Vec::new(), constants: Vec::new() }
    }

    /// `mod_switch` by `dropped` limbs: few have variants of their own, which keep the dropped residues in registers. With
    /// `rotate`, what a rotation adds to part 0.
    pub fn mod_switch(dropped: usize, rotate: bool) -> Self {
        let most = [1, 2, 4].into_iter().find(|&most| dropped <= most).unwrap_or(64);
        let flags = if rotate { vec!["ROTATE"] } else { Vec::new() };
        Self { kernel: Kernel::ModSwitch, flags, constants: vec![("MAX_DROPPED", most as u32)] }
    }

    /// The inner product of a key switch, `tile` results that share a key at a time.
    pub fn inner_product(tile: u32, accumulate: bool) -> Self {
        let flags = if accumulate { vec!["ACCUMULATE"] } else { Vec::new() };
        Self { kernel: Kernel::InnerProduct, flags, constants: vec![("TILE", tile)] }
    }

    /// `base_convert` from `from` limbs.
    pub fn base_convert(from: usize) -> Self {
        Self { kernel: Kernel::BaseConvert, flags: Vec::new(), constants: vec![("FROM", from as u32)] }
    }

    /// `modular_gemm` by wide products or by dot products of bytes, and the outputs and words that a workgroup makes.
    pub fn modular_gemm(form: GemmForm, product: ProductForm) -> (Self, usize, usize) {
        let (kernel, outputs, columns) = match (form, product) {
            (GemmForm::Wide, ProductForm::U64) => (Kernel::ModularGemm, 16, 2),
            (GemmForm::Wide, ProductForm::Split16) => (Kernel::ModularGemm, 8, 1),
            (GemmForm::Dot, _) => (Kernel::GemmDot, 8, 1),
        };
        let mut constants = vec![("OUTPUTS", outputs)];
        if form == GemmForm::Wide {
            constants.push(("COLUMNS", columns));
        }
        (Self { kernel, flags: Vec::new(), constants }, outputs as usize, (columns * WORKGROUP) as usize)
    }

    /// `ring_gemm` with elements of `words` words, and the rows and columns that a workgroup makes.
    pub fn ring_gemm(words: usize, operand: RingOperand, rows: usize) -> (Self, usize, usize) {
        let mut flags = Vec::new();
        if words == 2 {
            flags.push("WIDE");
        }
        if operand == RingOperand::Small {
            flags.push("SMALL");
        }
        let each = if rows <= 16 { 1 } else { 4 };
        (Self { kernel: Kernel::RingGemm, flags, constants: vec![("ROWS", each)] }, 16 * each as usize, 64)
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }

    /// Storage bindings, in the order in which the backend passes buffers.
    pub fn bindings(&self) -> &'static [Binding] {
        match self.kernel {
            Kernel::ForwardBlock | Kernel::ForwardStream | Kernel::InverseBlock | Kernel::InverseStream => {
                let all = const { &[read(1), read(2), write(3), read(4), read(5)] };
                let extra = if self.has("IN_PLACE") { 2 } else { usize::from(!self.has("CONVERT")) };
                &all[..all.len() - extra]
            }
            Kernel::Add | Kernel::Sub | Kernel::Mul => const { &[read(1), read(2), read(3), write(4)] },
            Kernel::MulAccumulate => const { &[read(1), read(6), read(2), read(3), write(4)] },
            Kernel::MulScalar => const { &[read(1), read(2), read(5), write(4)] },
            Kernel::MatmulPlain | Kernel::Expand | Kernel::BaseConvert | Kernel::ModularGemm | Kernel::GemmDot => {
                const { &[read(1), read(2), read(3), write(4)] }
            }
            Kernel::RingGemm => const { &[read(1), read(2), write(3)] },
            Kernel::InnerProduct => const { &[read(1), read(2), read(3), write(4), read(5)] },
            Kernel::ModSwitch => {
                let all = const { &[read(1), read(2), read(3), write(4), read(5), read(6)] };
                if self.has("ROTATE") { all } else { &all[..4] }
            }
            Kernel::Automorphism => const { &[read(1), read(2), write(4)] },
            Kernel::AutomorphismNtt => const { &[read(2), write(4)] },
            Kernel::CeilingCopy => const { &[read(1), write(2)] },
            Kernel::CeilingProducts => const { &[write(2)] },
            Kernel::PackStep => const { &[read(1), read(2), read(3), write(4), write(5)] },
        }
    }

    /// Number of `u32` in the shader's `struct Params`.
    pub fn params(&self) -> usize {
        match self.kernel {
            Kernel::ForwardBlock | Kernel::ForwardStream | Kernel::InverseBlock | Kernel::InverseStream => {
                if self.has("EXPAND") {
                    13
                } else if self.has("DIGITS") {
                    9
                } else {
                    5
                }
            }
            Kernel::Add | Kernel::Sub | Kernel::Mul | Kernel::MulAccumulate | Kernel::MulScalar => 4,
            Kernel::Automorphism | Kernel::AutomorphismNtt | Kernel::PackStep => 5,
            Kernel::Expand | Kernel::BaseConvert => 6,
            Kernel::MatmulPlain => 7,
            Kernel::ModSwitch => 8,
            Kernel::InnerProduct | Kernel::ModularGemm | Kernel::GemmDot => 10,
            Kernel::RingGemm => 12,
            Kernel::CeilingCopy | Kernel::CeilingProducts => 3,
        }
    }

    /// Invocations a workgroup.
    #[cfg(test)]
    pub fn workgroup_size(&self) -> u32 {
        self.constants.iter().find(|(name, _)| *name == "THREADS").map_or(WORKGROUP, |&(_, threads)| threads)
    }

    /// The WGSL text of the built-in sources.
    pub fn source(&self, form: ProductForm, immediates: bool) -> Result<String, PreprocessError> {
        self.expand(SOURCES, form, immediates).map(|expanded| expanded.text)
    }

    /// The WGSL text of other sources, and where its lines come from.
    pub fn expand(
        &self,
        sources: &[(&str, &str)],
        form: ProductForm,
        immediates: bool,
    ) -> Result<Expanded, PreprocessError> {
        let mut flags = self.flags.clone();
        if form == ProductForm::U64 {
            flags.push("FORM_U64");
        }
        if immediates {
            flags.push("IMMEDIATES");
        }
        expand(sources, self.kernel.file(), &flags, &self.constants)
    }
}

/// One launch of a transform of N = `1 << log_n`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NttPass {
    pub variant: Variant,
    /// Workgroups a row for a `*_block` kernel; invocations a row for a `*_stream` kernel.
    pub per_row: u32,
    /// Whether this is a `*_block` kernel.
    pub block: bool,
}

/// Direction and input of a transform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transform {
    Forward,
    /// Forward, with the digits of a key switch made on the way in, of so many limbs each.
    ForwardDigits(usize),
    /// Forward, of weight polynomials made on the way in.
    ForwardExpand {
        /// Rows of the matrix in each.
        block: usize,
        /// A power of two that their coefficients are below.
        span: usize,
    },
    Inverse,
}

/// The launches of a transform where a workgroup can hold `1 << log_block` words, `log_block >= 4`: the first reads the input
/// and writes the result, the others work in the result. At most two for the limits of any real adapter.
pub(super) fn ntt_passes(transform: Transform, log_n: u32, log_block: u32) -> Vec<NttPass> {
    let inverse = transform == Transform::Inverse;
    let log_block = log_block.min(log_n);
    // N = 8 is too small for a block of 16 words.
    let streamed = if log_n < 4 { log_n } else { log_n - log_block };
    // Stages that would only repeat coefficients. At N = 8 one is left, for a launch there must be.
    let skipped = match transform {
        Transform::ForwardExpand { span, .. } if log_n < 4 => (log_n - span.trailing_zeros()).min(log_n - 1),
        Transform::ForwardExpand { span, .. } => log_n - span.trailing_zeros(),
        _ => 0,
    };
    let mut passes = Vec::new();
    let mut stage = skipped;
    while stage < streamed {
        let bits = (streamed - stage).min(4);
        passes.push(NttPass {
            variant: Variant {
                kernel: if inverse { Kernel::InverseStream } else { Kernel::ForwardStream },
                flags: if log_n < 4 { vec!["STREAM", "CANONICAL"] } else { vec!["STREAM"] },
                constants: vec![("LOG_N", log_n), ("STREAM_STAGE", stage), ("STREAM_BITS", bits)],
            },
            per_row: 1 << (log_n - bits),
            block: false,
        });
        stage += bits;
    }
    if log_n >= 4 {
        let mut constants = vec![("LOG_N", log_n), ("LOG_BLOCK", log_block), ("THREADS", 1 << (log_block - 4))];
        constants.extend(block_stages(log_block, skipped.saturating_sub(streamed)));
        passes.push(NttPass {
            variant: Variant {
                kernel: if inverse { Kernel::InverseBlock } else { Kernel::ForwardBlock },
                flags: vec!["BLOCK"],
                constants,
            },
            per_row: 1 << streamed,
            block: true,
        });
    }
    if inverse {
        passes.reverse();
    }
    for (i, pass) in passes.iter_mut().enumerate() {
        if inverse {
            pass.variant.flags.push("INVERSE");
        }
        if i > 0 {
            pass.variant.flags.push("IN_PLACE");
            continue;
        }
        match transform {
            Transform::ForwardExpand { block, .. } => {
                pass.variant.flags.push("EXPAND");
                pass.variant.constants.extend([("BLOCK_ROWS", block as u32), ("SPAN", 1 << (log_n - skipped))]);
            }
            Transform::ForwardDigits(limbs) => {
                pass.variant.flags.push("DIGITS");
                pass.variant.constants.push(("DIGIT_LIMBS", limbs as u32));
                if limbs > 1 {
                    pass.variant.flags.push("CONVERT");
                }
            }
            Transform::Forward | Transform::Inverse => {}
        }
    }
    passes
}

/// The passes of a block of `1 << log_block` words without its first `skipped` stages: constants of `ntt.wgsl`.
fn block_stages(log_block: u32, skipped: u32) -> Vec<(&'static str, u32)> {
    // The last two stages are done on quads; up to four in each pass before.
    let quads = log_block - 2;
    let names =
        [["P0_STAGE", "P0_FIRST", "P0_LAST"], ["P1_STAGE", "P1_FIRST", "P1_LAST"], ["P2_STAGE", "P2_FIRST", "P2_LAST"]];
    let mut passes = Vec::new();
    let mut at = skipped;
    while at < quads {
        let end = quads.min((at / 4 + 1) * 4);
        // No four stages begin later than this.
        let stage = at.min(log_block - 4);
        passes.push([stage, at - stage, end - stage]);
        at = end;
    }
    let mut constants = vec![("PASSES", passes.len() as u32), ("QUAD_FIRST", skipped.saturating_sub(quads))];
    passes.resize(names.len(), [0; 3]);
    constants.extend(names.iter().flatten().copied().zip(passes.into_iter().flatten()));
    constants
}

#[cfg(test)]
mod tests {
    use super::*;
    use wgpu::naga;

    /// Every permutation that some adapter could ask for.
    fn all_variants() -> Vec<Variant> {
        use Kernel::*;
        let plain =
            [Add, Sub, Mul, MulAccumulate, MulScalar, MatmulPlain, Expand, Automorphism, AutomorphismNtt, PackStep];
        let mut all: Vec<_> = plain.map(Variant::plain).into();
        all.extend([CeilingCopy, CeilingProducts].map(Variant::plain));
        all.push(Variant { flags: vec!["HIGH"], ..Variant::plain(CeilingProducts) });
        for rotate in [false, true] {
            all.extend([1, 2, 4, 63].map(|dropped| Variant::mod_switch(dropped, rotate)));
        }
        for (tile, accumulate) in [(1, false), (4, false), (1, true), (4, true)] {
            all.push(Variant::inner_product(tile, accumulate));
        }
        all.extend([1, 2, 7, 32].map(Variant::base_convert));
        for operand in [RingOperand::Ring, RingOperand::Small] {
            for (words, rows) in [(1, 16), (1, 17), (2, 16), (2, 17)] {
                all.push(Variant::ring_gemm(words, operand, rows).0);
            }
        }
        for log_n in 3..=16 {
            for log_block in [4, 9, 12, 13] {
                let expand = Transform::ForwardExpand { block: 5, span: 8 << ((log_n - 3) / 2) };
                let plain = [Transform::Forward, Transform::Inverse, expand];
                for transform in plain.into_iter().chain([1, 2, 32].map(Transform::ForwardDigits)) {
                    for (i, pass) in ntt_passes(transform, log_n, log_block).into_iter().enumerate() {
                        let mut in_place = pass.variant.clone();
                        in_place.flags.push("IN_PLACE");
                        let in_place = (transform == Transform::Inverse && i == 0).then_some(in_place);
                        for variant in [Some(pass.variant), in_place].into_iter().flatten() {
                            if !all.contains(&variant) {
                                all.push(variant);
                            }
                        }
                    }
                }
            }
        }
        all
    }

    #[test]
    fn every_permutation_is_valid_and_matches_the_table() {
        for form in [ProductForm::U64, ProductForm::Split16] {
            let gemm = [GemmForm::Wide, GemmForm::Dot].map(|gemm| Variant::modular_gemm(gemm, form).0);
            for variant in all_variants().into_iter().chain(gemm) {
                for immediates in [true, false] {
                    check(&variant, form, immediates);
                }
            }
        }
    }

    fn check(variant: &Variant, form: ProductForm, immediates: bool) {
        let source = variant.source(form, immediates).unwrap();
        let module = match naga::front::wgsl::parse_str(&source) {
            Ok(module) => module,
            Err(e) => panic!("{variant:?} {form:?}: {}", e.emit_to_string(&source)),
        };
        let mut capabilities = naga::valid::Capabilities::IMMEDIATES;
        if form == ProductForm::U64 {
            capabilities |= naga::valid::Capabilities::SHADER_INT64;
        }
        let info = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities)
            .validate(&module)
            .unwrap_or_else(|e| panic!("{variant:?} {form:?}: {}", e.emit_to_string(&source)));

        let (index, entry) = module
            .entry_points
            .iter()
            .enumerate()
            .find(|(_, entry)| entry.name == variant.kernel.entry())
            .unwrap_or_else(|| panic!("{variant:?} has no entry point"));
        assert_eq!(entry.workgroup_size, [variant.workgroup_size(), 1, 1], "{variant:?}");
        let mut storage = Vec::new();
        for (handle, global) in module.global_variables.iter() {
            if info.get_entry_point(index)[handle].is_empty() {
                continue;
            }
            match global.space {
                naga::AddressSpace::Storage { access } => {
                    let binding = global.binding.unwrap();
                    assert_eq!(binding.group, 0);
                    let write = access.contains(naga::StorageAccess::STORE);
                    storage.push(Binding { index: binding.binding, write });
                }
                naga::AddressSpace::Immediate | naga::AddressSpace::Uniform => {
                    assert_eq!(global.space == naga::AddressSpace::Immediate, immediates);
                    let size = module.types[global.ty].inner.size(module.to_ctx());
                    assert_eq!(size as usize, 4 * variant.params(), "{variant:?}");
                    assert!(variant.params() <= MOST_PARAMS as usize);
                }
                _ => {}
            }
        }
        let mut table = variant.bindings().to_vec();
        table.sort_by_key(|b| b.index);
        storage.sort_by_key(|b| b.index);
        assert_eq!(storage, table, "{variant:?} {form:?}");
    }

    #[test]
    fn transforms_cover_each_stage_once() {
        for log_n in 3..=16u32 {
            for log_block in 4..=13 {
                let passes = ntt_passes(Transform::Forward, log_n, log_block);
                let constant = |v: &Variant, name| v.constants.iter().find(|c| c.0 == name).map_or(0, |c| c.1);
                let block = |v: &Variant| {
                    let pass = |first, last| constant(v, last) - constant(v, first);
                    let before =
                        pass("P0_FIRST", "P0_LAST") + pass("P1_FIRST", "P1_LAST") + pass("P2_FIRST", "P2_LAST");
                    if v.has("BLOCK") { before + 2 } else { 0 }
                };
                let stages: u32 = passes.iter().map(|p| constant(&p.variant, "STREAM_BITS") + block(&p.variant)).sum();
                assert_eq!(stages, log_n);
                assert!(log_block < 12 || passes.len() <= 2);
            }
        }
    }

    #[test]
    fn sources_name_their_twins() {
        for (name, text) in SOURCES {
            assert!(name.starts_with("lib/") || text.contains("// CPU twin"), "{name} names no CPU twin");
        }
    }
}
