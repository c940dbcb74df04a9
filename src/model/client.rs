//! The client's view of a model: text to inputs of the graph, outputs of the graph to an answer.

use super::{
    Encoded, Graph, GraphOptions, Inputs, Lookup, Manifest, ModelError, OutputKind, Pooling, Tokenizer,
    embedding::pool_weights, float::softmax, graph::POOL_FRAC, manifest,
};

/// A label with the probability that softmax gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    /// Its number.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Between 0 and 1.
    pub score: f64,
}

/// What a model says about a text.
#[derive(Clone, Debug, PartialEq)]
pub enum Prediction {
    /// The most probable label.
    Label(Label),
    /// The values of a regression.
    Values(Vec<f64>),
    /// The most probable label of every token, with the token.
    Tokens(Vec<(String, Label)>),
    /// An embedding.
    Embedding(Vec<f64>),
}

/// Outputs as real numbers, and what they mean.
#[derive(Clone, Debug, PartialEq)]
pub struct Outputs {
    /// Logits, values or embeddings: one row, or one a real token. Embeddings are normalised where the model says so.
    pub rows: Vec<Vec<f64>>,
    /// Their meaning.
    pub prediction: Prediction,
}

/// Everything the client does by itself, made from a manifest alone. The oracle uses the same functions.
pub struct ClientModel {
    manifest: Manifest,
    digest: [u8; 32],
    tokenizer: Tokenizer,
}

impl ClientModel {
    /// From the bytes of a manifest.
    ///
    /// # Errors
    /// [`ModelError`] if the bytes are not a manifest or its tokenizer cannot be built.
    pub fn from_manifest(bytes: &[u8]) -> Result<Self, ModelError> {
        let manifest = Manifest::from_bytes(bytes)?;
        let tokenizer = Tokenizer::new(&manifest.tokenizer)?;
        Ok(Self { manifest, digest: manifest::digest(bytes), tokenizer })
    }

    /// From a manifest.
    ///
    /// # Errors
    /// [`ModelError`] if its tokenizer cannot be built.
    pub fn new(manifest: Manifest) -> Result<Self, ModelError> {
        let tokenizer = Tokenizer::new(&manifest.tokenizer)?;
        Ok(Self { digest: manifest.digest()?, manifest, tokenizer })
    }

    /// The public part of the model.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Digest of the manifest's wire form.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Tokenizes a text or a pair, cut to `max_tokens` and to what the model admits.
    ///
    /// # Errors
    /// [`ModelError::Input`] if the limit leaves no room for a text.
    pub fn encode(&self, text: &str, pair: Option<&str>, max_tokens: usize) -> Result<Encoded, ModelError> {
        let types = self.manifest.embedding.shape().types;
        if pair.is_some() && types < 2 {
            return Err(ModelError::Input { reason: "this model takes no pairs of texts".into() });
        }
        let limit = max_tokens.min(self.manifest.max_tokens);
        self.tokenizer.encode(text, pair, limit, self.manifest.positions())
    }

    /// The graph of a bucket with [`Manifest::options`].
    ///
    /// # Errors
    /// [`ModelError::Spec`] for a count of tokens outside 1 to 512.
    pub fn graph(&self, bucket: usize) -> Result<Graph, ModelError> {
        self.graph_with(bucket, &self.manifest.options())
    }

    /// The graph of a bucket with other options.
    ///
    /// # Errors
    /// [`ModelError::Spec`] for a count of tokens outside 1 to 512, or if there is no graph with these options.
    pub fn graph_with(&self, bucket: usize, options: &GraphOptions) -> Result<Graph, ModelError> {
        Ok(Graph::build(&self.manifest.spec, bucket, options)?)
    }

    /// The inputs of [`Self::graph`]: the tokens with their padding, and their weights for pooling.
    ///
    /// # Errors
    /// [`ModelError::Input`] if a token has no row in the embedding block.
    pub fn inputs(&self, text: &Encoded) -> Result<Inputs, ModelError> {
        self.inputs_for(text, self.manifest.options().lookup)
    }

    /// The inputs of a graph with this lookup: embedded tokens, or one-hot ones.
    ///
    /// # Errors
    /// [`ModelError::Input`] if a token has no row in the embedding block, or the block is private and is to be used.
    pub fn inputs_for(&self, text: &Encoded, lookup: Lookup) -> Result<Inputs, ModelError> {
        let (spec, embedding) = (&self.manifest.spec, &self.manifest.embedding);
        let embedding = match (lookup, embedding.block()) {
            (Lookup::Private, _) => embedding.shape().one_hot(&text.ids, &text.types, text.bucket)?,
            (Lookup::Public, Some(e)) => e.embed(&text.ids, &text.types, text.bucket, spec.precision.hidden_frac)?,
            (Lookup::Public, None) => {
                let reason = "the server keeps its embedding block: choose private lookup".into();
                return Err(ModelError::Input { reason });
            }
        };
        let pool = (spec.pooling == Pooling::Mean).then(|| pool_weights(text.len(), text.bucket, POOL_FRAC));
        Ok(Inputs { embedding, pool, len: text.len() })
    }

    /// Signed values of the graph's output edge to real numbers and their meaning.
    ///
    /// # Errors
    /// [`ModelError::Input`] if there are not as many values as the edge has.
    pub fn decode(&self, text: &Encoded, graph: &Graph, values: &[i64]) -> Result<Outputs, ModelError> {
        let edge = graph.edge(graph.output);
        if values.len() != edge.len() {
            return Err(ModelError::Input { reason: format!("{} outputs instead of {}", values.len(), edge.len()) });
        }
        let scale = libm::exp2(-(edge.frac as f64));
        let rows: Vec<Vec<f64>> = values
            .chunks(edge.cols.max(1))
            .take(text.len())
            .map(|row| row.iter().map(|&x| x as f64 * scale).collect())
            .collect();
        self.interpret(text, rows)
    }

    /// The meaning of real outputs, normalised first where the model says so.
    ///
    /// # Errors
    /// [`ModelError::Input`] if there is no row.
    pub fn interpret(&self, text: &Encoded, mut rows: Vec<Vec<f64>>) -> Result<Outputs, ModelError> {
        let output = self.manifest.output;
        if output == (OutputKind::Embedding { normalize: true }) {
            rows.iter_mut().for_each(|row| normalize(row));
        }
        let first = rows.first().ok_or_else(|| ModelError::Input { reason: "there is no output".into() })?;
        let prediction = match output {
            OutputKind::Classification => Prediction::Label(self.label(first)),
            OutputKind::Regression => Prediction::Values(first.clone()),
            OutputKind::Embedding { .. } => Prediction::Embedding(first.clone()),
            OutputKind::TokenClassification => Prediction::Tokens(
                text.tokens.iter().zip(&rows).map(|(token, row)| (token.clone(), self.label(row))).collect(),
            ),
        };
        Ok(Outputs { rows, prediction })
    }

    fn label(&self, logits: &[f64]) -> Label {
        let mut scores = logits.to_vec();
        softmax(&mut scores, 1.0);
        let better = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
        let index = (0..logits.len()).fold(0, better);
        Label {
            index,
            name: self.manifest.labels.get(index).cloned().unwrap_or_default(),
            score: scores.get(index).copied().unwrap_or(0.0),
        }
    }
}

/// Divides a vector by its length, as sentence-transformers does (lengths below `1e-12` count as that).
fn normalize(x: &mut [f64]) {
    let length = x.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
    x.iter_mut().for_each(|x| *x /= length);
}
