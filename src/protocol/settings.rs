//! What the two parties agree on before an inference: how each kind of non-linear layer is evaluated, and how OTs are made.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{arith::codec::CodecError, model::Function};

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

/// All that the parties agree on for one inference, besides model and bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// How non-linear layers are evaluated.
    pub methods: Methods,
    /// How OTs are made.
    pub ot: OtMethod,
    /// How matrices are laid out in ciphertexts.
    pub layout: Layout,
}

impl Settings {
    /// Garbled layers, OTs by extension, least work: the exact mode for a fast link.
    pub const EXACT: Self = Self { methods: Methods::GARBLED, ot: OtMethod::Iknp, layout: Layout::Work };

    /// Wire form.
    pub fn to_bytes(self) -> [u8; 3] {
        [self.methods.0, self.ot as u8, self.layout as u8]
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// Bits that have no meaning.
    pub fn from_bytes([methods, ot, layout]: [u8; 3]) -> Result<Self, CodecError> {
        if methods & !Methods::SHARED.0 != 0 {
            return Err(CodecError::Invalid { what: "the methods of non-linear layers" });
        }
        let ot = match ot {
            0 => OtMethod::Iknp,
            1 => OtMethod::Silent,
            _ => return Err(CodecError::Invalid { what: "the OT extension" }),
        };
        let layout = Layout::ALL.get(usize::from(layout)).copied();
        let layout = layout.ok_or(CodecError::Invalid { what: "the layout of ciphertexts" })?;
        Ok(Self { methods: Methods(methods), ot, layout })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back_and_nonsense_is_refused() {
        for (ot, layout) in [OtMethod::Iknp, OtMethod::Silent].into_iter().flat_map(|ot| Layout::ALL.map(|l| (ot, l))) {
            for bits in 0..1 << LayerKind::ALL.len() {
                let settings = Settings { methods: Methods(bits), ot, layout };
                assert_eq!(Settings::from_bytes(settings.to_bytes()).unwrap(), settings);
            }
        }
        assert!(Settings::from_bytes([32, 0, 0]).is_err());
        assert!(Settings::from_bytes([0, 2, 0]).is_err());
        assert!(Settings::from_bytes([0, 0, 4]).is_err());
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
