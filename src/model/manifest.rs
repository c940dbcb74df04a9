//! The public part of a model: everything the client needs, and no weights of the encoder.
//!
//! Form: the magic `HSMF`, a version (`u16`), then a JSON header and seven byte strings, each behind its length (`u64`), all
//! little endian. The strings are the tokenizer's three files (empty if absent), the tables of words, positions and token
//! types, and LayerNorm's gain followed by its bias (`f32`); the last four are empty where the embedding block is private.
//! Nothing follows. Both sides compute the digest of these bytes.

use serde::{Deserialize, Serialize};

use super::{
    BUCKETS, Embedding, EmbeddingBlock, EmbeddingShape, Graph, GraphOptions, Lookup, ModelError, ModelSpec, OutputKind,
    Pooling, Table, TableType, TokenizerFiles,
};

const MAGIC: &[u8; 4] = b"HSMF";
const VERSION: u16 = 2;

/// Longest JSON header.
const HEADER_LIMIT: usize = 16 << 20;

/// What the server tells a client about its model.
#[derive(Clone, PartialEq)]
pub struct Manifest {
    /// The model's name, for reports.
    pub name: String,
    /// blake3 of the checkpoint's files: binds the manifest's digest, and correlations kept on disk, to the weights. It tells
    /// a client that guesses the whole checkpoint that the guess is right, and nothing else.
    pub checkpoint: [u8; 32],
    /// Shapes, fraction bits and magnitudes.
    pub spec: ModelSpec,
    /// What the outputs mean.
    pub output: OutputKind,
    /// Names of the outputs, if they are logits or values.
    pub labels: Vec<String>,
    /// Most tokens, `[CLS]` and `[SEP]` included.
    pub max_tokens: usize,
    /// The tokenizer's files.
    pub tokenizer: TokenizerFiles,
    /// The embedding block, or its shape.
    pub embedding: Embedding,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    name: String,
    checkpoint: [u8; 32],
    spec: ModelSpec,
    output: OutputKind,
    labels: Vec<String>,
    max_tokens: usize,
    embedding: EmbeddingHeader,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum EmbeddingHeader {
    Public { word: TableShape, position: TableShape, token_type: TableShape, epsilon: f64, pad_id: u32 },
    Private(EmbeddingShape),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TableShape {
    rows: usize,
    cols: usize,
    dtype: TableType,
}

impl TableShape {
    fn of(table: &Table) -> Self {
        Self { rows: table.rows(), cols: table.cols(), dtype: table.dtype() }
    }

    fn table(&self, bytes: &[u8]) -> Result<Table, ModelError> {
        Table::new(self.rows, self.cols, self.dtype, bytes.to_vec())
            .ok_or_else(|| damaged("a table has another size than its header says, or numbers that are not finite"))
    }
}

fn damaged(reason: impl Into<String>) -> ModelError {
    ModelError::Manifest { reason: reason.into() }
}

impl Manifest {
    /// The wire form.
    ///
    /// # Errors
    /// [`ModelError::Manifest`] if the header cannot be written, which no loaded model causes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ModelError> {
        let embedding = match &self.embedding {
            Embedding::Public(e) => EmbeddingHeader::Public {
                word: TableShape::of(&e.word),
                position: TableShape::of(&e.position),
                token_type: TableShape::of(&e.token_type),
                epsilon: e.epsilon,
                pad_id: e.pad_id,
            },
            Embedding::Private(shape) => EmbeddingHeader::Private(*shape),
        };
        let header = Header {
            name: self.name.clone(),
            checkpoint: self.checkpoint,
            spec: self.spec.clone(),
            output: self.output,
            labels: self.labels.clone(),
            max_tokens: self.max_tokens,
            embedding,
        };
        let header = serde_json::to_vec(&header).map_err(|e| damaged(e.to_string()))?;
        let tables = self.embedding.block().map_or_else(Default::default, |e| {
            let norm = e.gain.iter().chain(&e.bias).flat_map(|x| x.to_le_bytes()).collect();
            [e.word.bytes().to_vec(), e.position.bytes().to_vec(), e.token_type.bytes().to_vec(), norm]
        });
        let file = |bytes: &Option<Vec<u8>>| bytes.clone().unwrap_or_default();
        let t = &self.tokenizer;
        let strings = [header, file(&t.tokenizer), file(&t.vocabulary), file(&t.config)]
            .into_iter()
            .chain(tables)
            .collect::<Vec<Vec<u8>>>();
        let mut out = Vec::with_capacity(6 + strings.iter().map(|s| s.len() + 8).sum::<usize>());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        for s in &strings {
            out.extend_from_slice(&(s.len() as u64).to_le_bytes());
            out.extend_from_slice(s);
        }
        Ok(out)
    }

    /// Reads the wire form and checks that everything in it fits together.
    ///
    /// # Errors
    /// [`ModelError::Manifest`] for anything that [`Self::to_bytes`] would not write; lengths are checked before anything is
    /// allocated.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ModelError> {
        let mut rest = Reader { bytes };
        if rest.take(4)? != MAGIC {
            return Err(damaged("it does not begin with HSMF"));
        }
        match rest.take(2)? {
            version if version == VERSION.to_le_bytes() => {}
            version => return Err(damaged(format!("its version is {version:?}, not {VERSION}"))),
        }
        let header = rest.string()?;
        if header.len() > HEADER_LIMIT {
            return Err(damaged("its header is too long"));
        }
        let header: Header = serde_json::from_slice(header).map_err(|e| damaged(format!("its header: {e}")))?;
        let mut file = || rest.string().map(|s| (!s.is_empty()).then(|| s.to_vec()));
        let tokenizer = TokenizerFiles { tokenizer: file()?, vocabulary: file()?, config: file()? };
        let strings = [rest.string()?, rest.string()?, rest.string()?, rest.string()?];
        if !rest.bytes.is_empty() {
            return Err(damaged("it goes on after its end"));
        }
        let embedding = match header.embedding {
            EmbeddingHeader::Public { word, position, token_type, epsilon, pad_id } => {
                let mut gain = TableType::F32.decode(strings[3]);
                let bias = gain.split_off(gain.len() / 2);
                let [word, position, token_type] =
                    [word.table(strings[0])?, position.table(strings[1])?, token_type.table(strings[2])?];
                Embedding::Public(EmbeddingBlock {
                    word,
                    position,
                    token_type,
                    gain,
                    bias,
                    epsilon,
                    pad_id,
                    affine: false,
                })
            }
            EmbeddingHeader::Private(_) if strings.iter().any(|s| !s.is_empty()) => {
                return Err(damaged("it has tables of a private embedding block"));
            }
            EmbeddingHeader::Private(shape) => Embedding::Private(shape),
        };
        let manifest = Self {
            name: header.name,
            checkpoint: header.checkpoint,
            spec: header.spec,
            output: header.output,
            labels: header.labels,
            max_tokens: header.max_tokens,
            tokenizer,
            embedding,
        };
        manifest.check()?;
        Ok(manifest)
    }

    /// blake3 of the wire form.
    ///
    /// # Errors
    /// As [`Self::to_bytes`].
    pub fn digest(&self) -> Result<[u8; 32], ModelError> {
        Ok(digest(&self.to_bytes()?))
    }

    /// The manifest of the same model with a private embedding block: no table, no gain, no bias.
    pub fn without_tables(&self) -> Self {
        Self { embedding: Embedding::Private(self.embedding.shape()), ..self.clone() }
    }

    /// The default options of a client that has this manifest: without tables, tokens are looked up in the graph.
    pub fn options(&self) -> GraphOptions {
        let lookup = match self.embedding {
            Embedding::Public(_) => Lookup::Public,
            Embedding::Private(_) => Lookup::Private,
        };
        GraphOptions { lookup, ..GraphOptions::default() }
    }

    /// Largest public length.
    pub fn positions(&self) -> usize {
        self.embedding.shape().positions
    }

    fn check(&self) -> Result<(), ModelError> {
        self.spec.validate()?;
        let outputs = self.spec.dense.last().map_or(0, |d| d.features);
        let labels = match self.output {
            OutputKind::Embedding { .. } => 0,
            _ => outputs,
        };
        let tokens = self.output == OutputKind::TokenClassification;
        let shape = self.embedding.shape();
        let consistent = match &self.embedding {
            Embedding::Public(block) => block.is_consistent(),
            Embedding::Private(shape) => {
                let lookup = self.spec.lookup.as_ref().map(|l| (l.vocabulary, l.types));
                shape.is_consistent() && lookup == Some((shape.vocabulary, shape.types))
            }
        };
        if !consistent || shape.hidden != self.spec.hidden {
            return Err(damaged("its embedding block does not fit together"));
        }
        if self.labels.len() != labels {
            return Err(damaged(format!("it has {} labels for {outputs} outputs", self.labels.len())));
        }
        if tokens != (self.spec.pooling == Pooling::Tokens) {
            return Err(damaged("its pooling does not fit its outputs"));
        }
        if !(2..=self.positions()).contains(&self.max_tokens) {
            return Err(damaged(format!("{} tokens are admitted for {} positions", self.max_tokens, self.positions())));
        }
        for tokens in BUCKETS.into_iter().filter(|&b| b <= self.positions()) {
            Graph::build(&self.spec, tokens, &self.options())?;
        }
        Ok(())
    }
}

/// The digest of a manifest's wire form.
pub fn digest(bytes: &[u8]) -> [u8; 32] {
    blake3::derive_key("heliostat manifest 1", bytes)
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], ModelError> {
        let (head, rest) = self.bytes.split_at_checked(n).ok_or_else(|| damaged("it ends early"))?;
        self.bytes = rest;
        Ok(head)
    }

    fn string(&mut self) -> Result<&'a [u8], ModelError> {
        let mut length = [0; 8];
        length.copy_from_slice(self.take(8)?);
        let length = usize::try_from(u64::from_le_bytes(length)).map_err(|_| damaged("a length is too large"))?;
        self.take(length)
    }
}
