//! What the two parties agree on before an inference: how each kind of non-linear layer is evaluated, and how OTs are made.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{ClassPackings, ProtocolError};
use crate::{
    arith::codec::CodecError,
    model::{Function, GraphOptions, Lookup, MergeSet, Rings},
};

/// A kind of non-linear layer; all nodes of a kind are evaluated alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerKind {
    /// Truncations.
    Truncate,
    /// Activations: GELU, ReLU.
    Activation,
    /// Softmax numerators.
    Exp,
    /// Reciprocals and inverse square roots, one a row.
    Power,
    /// `tanh` of a dense head layer.
    Tanh,
}

impl LayerKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Truncate, Self::Activation, Self::Exp, Self::Power, Self::Tanh];

    /// The kind of a function.
    pub fn of(function: &Function) -> Self {
        match function {
            Function::Truncate { .. } => Self::Truncate,
            Function::Activation(_) => Self::Activation,
            Function::Exp(_) => Self::Exp,
            Function::Power { .. } => Self::Power,
            Function::Tanh(_) => Self::Tanh,
        }
    }

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Truncate => "truncate",
            Self::Activation => "activation",
            Self::Exp => "exp",
            Self::Power => "power",
            Self::Tanh => "tanh",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// How a non-linear layer is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// By a garbled circuit: one round, exactly the oracle's result.
    Garbled,
    /// On additive shares by oblivious transfer: a tenth of the bytes, many rounds, within a stated error of the oracle.
    Shared,
}

impl Method {
    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Garbled => "garbled",
            Self::Shared => "shared",
        }
    }
}

/// The method of every kind of layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Methods(u8);

impl Methods {
    /// Every layer garbled.
    pub const GARBLED: Self = Self(0);
    /// Every layer on shares.
    pub const SHARED: Self = Self((1 << LayerKind::ALL.len()) - 1);

    /// The method of a kind.
    pub fn of(self, kind: LayerKind) -> Method {
        if self.0 & kind.bit() == 0 { Method::Garbled } else { Method::Shared }
    }

    /// With another method for a kind.
    pub fn with(self, kind: LayerKind, method: Method) -> Self {
        match method {
            Method::Garbled => Self(self.0 & !kind.bit()),
            Method::Shared => Self(self.0 | kind.bit()),
        }
    }

    /// Whether the results are exactly the oracle's: nothing is evaluated on shares.
    pub fn is_exact(self) -> bool {
        self == Self::GARBLED
    }
}

impl fmt::Display for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::GARBLED => f.write_str("garbled"),
            Self::SHARED => f.write_str("shared"),
            mixed => {
                let shared: Vec<_> =
                    LayerKind::ALL.iter().filter(|&&k| mixed.of(k) == Method::Shared).map(|k| k.name()).collect();
                write!(f, "garbled, but {} shared", shared.join(", "))
            }
        }
    }
}

/// How correlated OTs are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OtMethod {
    /// By the extension of Ishai, Kilian, Nissim and Petrank: 16 bytes an OT, little work.
    #[default]
    Iknp,
    /// Silently, from the hardness of learning parity with noise: under a byte an OT, more work.
    Silent,
}

impl OtMethod {
    /// Name in reports and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iknp => "iknp",
            Self::Silent => "silent",
        }
    }
}

impl FromStr for OtMethod {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "iknp" => Ok(Self::Iknp),
            "silent" => Ok(Self::Silent),
            _ => Err(format!("no OT extension {text}: there are iknp and silent")),
        }
    }
}

/// What the layout of encrypted matrices economises. Fewer ciphertexts to the server mean more key switches there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// The server's work.
    #[default]
    Work,
    /// Bytes where they cost little work.
    Balanced,
    /// Bytes.
    Bytes,
    /// Bytes at any price.
    Least,
}

impl Layout {
    /// All of them, from the least work to the fewest bytes.
    pub const ALL: [Self; 4] = [Self::Work, Self::Balanced, Self::Bytes, Self::Least];

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Work => "least work",
            Self::Balanced => "balanced",
            Self::Bytes => "few bytes",
            Self::Least => "fewest bytes",
        }
    }
}

/// When the homomorphic work of linear layers is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinearMode {
    /// Offline, on the client's random share; online the server computes in plain integers.
    #[default]
    Offline,
    /// Online: the client encrypts its share when the layer's turn has come. What there was before Primer; to compare with.
    Online,
}

impl LinearMode {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Offline, Self::Online];

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Online => "online",
        }
    }
}

impl FromStr for LinearMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        by_name("time for linear layers", &Self::ALL, Self::name, text)
    }
}

/// How products of two shared matrices are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProductMode {
    /// Cross terms with the server's masks are made homomorphically offline; online, operands less these masks are sent.
    #[default]
    Masked,
    /// The client's shares are sent encrypted, ahead of time where linear layers are done offline; online the server multiplies
    /// its own shares by them homomorphically (FHGS of Primer).
    Fhgs,
}

impl ProductMode {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Masked, Self::Fhgs];

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Masked => "masked",
            Self::Fhgs => "fhgs",
        }
    }
}

impl FromStr for ProductMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        by_name("way of products", &Self::ALL, Self::name, text)
    }
}

/// How matrices lie in ciphertexts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PackingKind {
    /// In coefficients, for rings of either kind.
    #[default]
    Coefficient,
    /// In slots, a feature's tokens side by side, by baby steps and giant steps; for prime rings.
    TokensFirst,
    /// The same with every rotation of every input.
    TokensFirstPlain,
    /// In slots, a token's features side by side, with every rotation of every input.
    FeaturesFirst,
    /// A ciphertext for each column of a linear layer's input; products as in [`Self::Coefficient`].
    BatchColumn,
}

impl PackingKind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Coefficient, Self::TokensFirst, Self::TokensFirstPlain, Self::FeaturesFirst, Self::BatchColumn];

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Coefficient => "coefficient",
            Self::TokensFirst => "tokens_first",
            Self::TokensFirstPlain => "tokens_first_plain",
            Self::FeaturesFirst => "features_first",
            Self::BatchColumn => "batch_column",
        }
    }
}

impl FromStr for PackingKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        by_name("packing", &Self::ALL, Self::name, text)
    }
}

/// The one of `all` with this name, dashes taken for underscores.
fn by_name<T: Copy>(what: &str, all: &[T], name: fn(T) -> &'static str, text: &str) -> Result<T, String> {
    let wanted = text.replace('-', "_");
    let found = all.iter().copied().find(|&value| name(value) == wanted);
    let names = || all.iter().map(|&value| name(value).replace('_', "-")).collect::<Vec<_>>().join(", ");
    found.ok_or_else(|| format!("no {what} {text}: there are {}", names()))
}

/// All that the parties agree on for one inference, besides model and bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// How non-linear layers are evaluated.
    pub methods: Methods,
    /// How OTs are made.
    pub ot: OtMethod,
    /// What the layout of matrices in ciphertexts economises.
    pub layout: Layout,
    /// When the homomorphic work of linear layers is done.
    pub linear: LinearMode,
    /// How products of two shared matrices are made.
    pub products: ProductMode,
    /// How matrices lie in ciphertexts.
    pub packing: PackingKind,
    /// How those of single linear layers do, where it is otherwise.
    pub classes: ClassPackings,
    /// Inferences whose rows share ciphertexts where a linear layer is in [`PackingKind::BatchColumn`] and offline: their linear
    /// layers are prepared together. At least 1.
    pub together: u16,
    /// The graph of model and bucket.
    pub graph: GraphOptions,
}

impl Settings {
    /// Garbled layers, OTs by extension, least work: the exact mode for a fast link. Nothing homomorphic online.
    pub const EXACT: Self = Self {
        methods: Methods::GARBLED,
        ot: OtMethod::Iknp,
        layout: Layout::Work,
        linear: LinearMode::Offline,
        products: ProductMode::Masked,
        packing: PackingKind::Coefficient,
        classes: ClassPackings::NONE,
        together: 1,
        graph: GraphOptions { merge: MergeSet::NONE, rings: Rings::Pow2, lookup: Lookup::Public },
    };

    /// Bytes of the wire form.
    pub const BYTES: usize = 6 + ClassPackings::BYTES + 2 + GraphOptions::BYTES;

    /// How the matrices of a class of linear layers lie in ciphertexts.
    pub fn packing_of(&self, class: usize) -> PackingKind {
        self.classes.get(class).unwrap_or(self.packing)
    }

    /// What a kept correlation is good for: how the shares of its linear layers and products were made does not matter
    /// any more.
    pub fn kept(self) -> Self {
        let Self { packing, classes, together, layout, .. } = Self::EXACT;
        Self { packing, classes, together, layout, ..self }
    }

    /// Whether the online phase needs the client's HE key and the server's switching keys, which live as long as a connection.
    pub fn he_online(&self) -> bool {
        self.linear == LinearMode::Online || self.products == ProductMode::Fhgs
    }

    /// Whether a correlation of these settings can be kept for a later connection.
    ///
    /// # Errors
    /// [`ProtocolError::NotKept`] if it would need keys that end with the connection.
    pub fn check_kept(&self) -> Result<(), ProtocolError> {
        if self.he_online() { Err(ProtocolError::NotKept) } else { Ok(()) }
    }

    /// Wire form.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let Self { methods, ot, layout, linear, products, packing, classes, together, graph } = self;
        let mut bytes = [0; Self::BYTES];
        bytes[..6].copy_from_slice(&[methods.0, ot as u8, layout as u8, linear as u8, products as u8, packing as u8]);
        bytes[6..14].copy_from_slice(&classes.to_bytes());
        bytes[14..16].copy_from_slice(&together.to_le_bytes());
        bytes[16..].copy_from_slice(&graph.to_bytes());
        bytes
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// Bits that have no meaning.
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Result<Self, CodecError> {
        let [methods, ot, layout, linear, products, packing, c0, c1, c2, c3, c4, c5, c6, c7, low, high, graph @ ..] =
            bytes;
        let together = u16::from_le_bytes([low, high]);
        if together == 0 {
            return Err(CodecError::Invalid { what: "how many inferences are prepared together" });
        }
        if methods & !Methods::SHARED.0 != 0 {
            return Err(CodecError::Invalid { what: "the methods of non-linear layers" });
        }
        let ot = match ot {
            0 => OtMethod::Iknp,
            1 => OtMethod::Silent,
            _ => return Err(CodecError::Invalid { what: "the OT extension" }),
        };
        fn choice<T: Copy>(all: &[T], index: u8, what: &'static str) -> Result<T, CodecError> {
            all.get(usize::from(index)).copied().ok_or(CodecError::Invalid { what })
        }
        Ok(Self {
            methods: Methods(methods),
            ot,
            layout: choice(&Layout::ALL, layout, "the layout of ciphertexts")?,
            linear: choice(&LinearMode::ALL, linear, "the mode of linear layers")?,
            products: choice(&ProductMode::ALL, products, "the mode of products")?,
            packing: choice(&PackingKind::ALL, packing, "the packing")?,
            classes: ClassPackings::from_bytes([c0, c1, c2, c3, c4, c5, c6, c7])?,
            together,
            graph: GraphOptions::from_bytes(graph)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back_and_nonsense_is_refused() {
        // Every value of every field, and all of them together.
        let limits = [1 << LayerKind::ALL.len(), 2, 4, 2, 2, 5u8];
        let mut seen = 0u32;
        for code in 0..limits.iter().map(|&l| u32::from(l)).product() {
            let mut rest: u32 = code;
            let mut bytes = Settings::EXACT.to_bytes();
            for (byte, limit) in bytes.iter_mut().zip(limits) {
                *byte = (rest % u32::from(limit)) as u8;
                rest /= u32::from(limit);
            }
            assert_eq!(Settings::from_bytes(bytes).unwrap().to_bytes(), bytes);
            seen += 1;
        }
        assert_eq!(seen, 32 * 2 * 4 * 2 * 2 * 5);
        let graph = GraphOptions { rings: Rings::Prime, lookup: Lookup::Private, merge: MergeSet::ALL };
        let classes = ClassPackings::NONE.with(3, PackingKind::BatchColumn);
        let settings = Settings { graph, classes, together: 513, ..Settings::EXACT };
        assert_eq!(Settings::from_bytes(settings.to_bytes()).unwrap(), settings);
        assert_eq!((settings.packing_of(2), settings.packing_of(3)), (settings.packing, PackingKind::BatchColumn));
        assert_eq!(settings.kept(), Settings { graph, ..Settings::EXACT });
        for (byte, wrong) in [(13, 0xf0), (14, 0), (18, 9)] {
            let mut bytes = Settings::EXACT.to_bytes();
            bytes[byte] = wrong;
            assert!(Settings::from_bytes(bytes).is_err(), "{byte}");
        }
        for (field, limit) in limits.into_iter().enumerate() {
            let mut bytes = Settings::EXACT.to_bytes();
            bytes[field] = limit;
            assert!(Settings::from_bytes(bytes).is_err(), "field {field}");
        }
    }

    #[test]
    fn what_needs_keys_online() {
        assert!(!Settings::EXACT.he_online());
        assert!(Settings { linear: LinearMode::Online, ..Settings::EXACT }.he_online());
        assert!(Settings { products: ProductMode::Fhgs, ..Settings::EXACT }.he_online());
    }

    #[test]
    fn names_are_read() {
        assert!(LinearMode::ALL.into_iter().all(|m| m.name().parse() == Ok(m)));
        assert!(ProductMode::ALL.into_iter().all(|m| m.name().parse() == Ok(m)));
        for packing in PackingKind::ALL {
            assert_eq!(packing.name().parse(), Ok(packing));
            assert_eq!(packing.name().replace('_', "-").parse(), Ok(packing));
        }
        let e = "rows".parse::<PackingKind>().unwrap_err();
        assert!(e.contains("no packing rows") && e.contains("tokens-first-plain"), "{e}");
    }

    #[test]
    fn a_kind_changes_alone() {
        let mixed = Methods::GARBLED.with(LayerKind::Exp, Method::Shared);
        for kind in LayerKind::ALL {
            let expected = if kind == LayerKind::Exp { Method::Shared } else { Method::Garbled };
            assert_eq!(mixed.of(kind), expected);
        }
        assert_eq!(mixed.with(LayerKind::Exp, Method::Garbled), Methods::GARBLED);
        assert_eq!(mixed.to_string(), "garbled, but exp shared");
        assert!(!mixed.is_exact() && Methods::GARBLED.is_exact());
    }
}
