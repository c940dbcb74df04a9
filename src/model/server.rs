//! The server's view of a model: the checkpoint, its numbers, and the integer weights.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use super::{
    BUCKETS, CALIBRATION_FILE, Calibration, Checkpoint, ClientModel, Embedding, Encoded, Evaluator, Exact, Execution,
    Graph, GraphOptions, Lookup, Manifest, ModelError, ModelSpec, Outputs, Precision, ServerWeights, bounds,
    execute_with, lookup,
    quantize::{self, Rounded},
};

/// Where the magnitudes of a model's description come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provenance {
    /// Proven from the weights.
    WorstCase {
        /// Fields that had to be cut below what can be proven, because no ring is as wide; overflow is then possible and
        /// the oracle counts it.
        clamped: Vec<String>,
    },
    /// Seen on sample texts, with headroom.
    Calibrated {
        /// Number of texts.
        samples: usize,
        /// Bits added to the largest magnitudes.
        headroom_bits: u32,
    },
}

/// A model as the server holds it.
pub struct Model {
    checkpoint: Checkpoint,
    provenance: Provenance,
    weights: Arc<ServerWeights>,
    /// With the embedding block's table, made when it is first asked for.
    private: OnceLock<Arc<ServerWeights>>,
    client: ClientModel,
}

/// The oracle's account of one text.
pub struct OracleRun {
    /// The graph of the text's bucket.
    pub graph: Graph,
    /// All edges and the overflows.
    pub execution: Execution,
    /// Real outputs and their meaning.
    pub outputs: Outputs,
}

impl Model {
    /// Reads a model folder, with the calibration file in it if there is one, else with proven magnitudes.
    ///
    /// # Errors
    /// A [`ModelError`] whose sentence says what is wrong with the folder.
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        Self::load_with(dir, None)
    }

    /// Reads a model folder with the given calibration file.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with(dir: &Path, calibration: Option<&Path>) -> Result<Self, ModelError> {
        let checkpoint = Checkpoint::read(dir)?;
        let beside = dir.join(CALIBRATION_FILE);
        let path = calibration.or_else(|| beside.is_file().then_some(&*beside));
        match path {
            Some(path) => {
                let calibration = Calibration::read(path, &checkpoint.digest)?;
                Self::calibrated(checkpoint, calibration)
                    .map_err(|e| ModelError::Calibration { path: path.to_path_buf(), reason: e.to_string() })
            }
            None => Self::worst_case(checkpoint, &Precision::default()),
        }
    }

    /// A model with calibrated magnitudes.
    ///
    /// # Errors
    /// [`ModelError`] if the calibration has other shapes than the checkpoint, or no graph.
    pub fn calibrated(checkpoint: Checkpoint, calibration: Calibration) -> Result<Self, ModelError> {
        exact(&checkpoint)?;
        let mut spec = calibration.spec;
        spec.validate()?;
        let folded = quantize::fold(&checkpoint);
        let shapes = quantize::shapes(&checkpoint, &Rounded::new(&folded, &spec.precision)?, &spec.precision);
        // Nothing in it is calibrated, and older files lack it.
        spec.lookup.clone_from(&shapes.lookup);
        if !same_shapes(&shapes, &spec) {
            return Err(ModelError::Unsupported { what: "its shapes are not the checkpoint's".into() });
        }
        for tokens in BUCKETS.into_iter().filter(|&b| b <= checkpoint.config.positions) {
            Graph::build(&spec, tokens, &GraphOptions::default())?;
        }
        let weights = ServerWeights::new(&folded, &spec)?;
        let provenance =
            Provenance::Calibrated { samples: calibration.samples, headroom_bits: calibration.headroom_bits };
        Self::assemble(checkpoint, spec, weights, provenance)
    }

    /// A model with proven magnitudes.
    ///
    /// # Errors
    /// [`ModelError`] if weights are too large or no ring is wide enough.
    pub fn worst_case(checkpoint: Checkpoint, precision: &Precision) -> Result<Self, ModelError> {
        exact(&checkpoint)?;
        let folded = quantize::fold(&checkpoint);
        let rounded = Rounded::new(&folded, precision)?;
        let shapes = quantize::shapes(&checkpoint, &rounded, precision);
        let (spec, clamped) = bounds::worst_case(&checkpoint, &rounded, shapes)?;
        let weights = ServerWeights::new(&folded, &spec)?;
        Self::assemble(checkpoint, spec, weights, Provenance::WorstCase { clamped })
    }

    fn assemble(
        checkpoint: Checkpoint,
        spec: ModelSpec,
        weights: ServerWeights,
        provenance: Provenance,
    ) -> Result<Self, ModelError> {
        let manifest = Manifest {
            name: checkpoint.name.clone(),
            checkpoint: checkpoint.digest,
            spec,
            output: checkpoint.output,
            labels: checkpoint.labels.clone(),
            max_tokens: checkpoint.max_tokens,
            tokenizer: checkpoint.tokenizer.clone(),
            embedding: Embedding::Public(checkpoint.embedding.clone()),
        };
        let client = ClientModel::new(manifest)?;
        Ok(Self { checkpoint, provenance, weights: Arc::new(weights), private: OnceLock::new(), client })
    }

    /// The checkpoint in real numbers.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Gives the checkpoint back, to make a model with other numbers of it.
    pub fn into_checkpoint(self) -> Checkpoint {
        self.checkpoint
    }

    /// The public part.
    pub fn manifest(&self) -> &Manifest {
        self.client.manifest()
    }

    /// Shapes, fraction bits and magnitudes.
    pub fn spec(&self) -> &ModelSpec {
        &self.client.manifest().spec
    }

    /// Where the magnitudes come from.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// The integer matrices.
    pub fn weights(&self) -> &Arc<ServerWeights> {
        &self.weights
    }

    /// The integer matrices of graphs with this lookup.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] if the embedding block does not fit the graph.
    pub fn weights_for(&self, lookup: Lookup) -> Result<Arc<ServerWeights>, ModelError> {
        match (lookup, self.private.get()) {
            (Lookup::Public, _) => Ok(self.weights.clone()),
            (Lookup::Private, Some(weights)) => Ok(weights.clone()),
            (Lookup::Private, None) => {
                let weights = self.weights.with_lookup(&lookup::fold_lookup(&self.checkpoint), self.spec())?;
                Ok(self.private.get_or_init(|| Arc::new(weights)).clone())
            }
        }
    }

    /// What a client makes of the manifest without the embedding block.
    ///
    /// # Errors
    /// [`ModelError`] if the embedding block does not fit the graph.
    pub fn private_client(&self) -> Result<ClientModel, ModelError> {
        ClientModel::new(self.manifest().without_tables())
    }

    /// What a client makes of the manifest.
    pub fn client(&self) -> &ClientModel {
        &self.client
    }

    /// Executes the fixed-point graph of the text's bucket in the clear.
    ///
    /// # Errors
    /// [`ModelError::Input`] if the text does not belong to this model.
    pub fn oracle(&self, text: &Encoded) -> Result<OracleRun, ModelError> {
        self.oracle_with(text, &mut Exact)
    }

    /// As [`Self::oracle`], with the non-linear nodes computed by `evaluator`.
    ///
    /// # Errors
    /// [`ModelError::Input`] if the text does not belong to this model, or with what the evaluator reports.
    pub fn oracle_with(&self, text: &Encoded, evaluator: &mut dyn Evaluator) -> Result<OracleRun, ModelError> {
        self.oracle_for(text, &GraphOptions::default(), evaluator)
    }

    /// As [`Self::oracle_with`], of the graph with these options.
    ///
    /// # Errors
    /// As [`Self::oracle_with`]; [`ModelError::Spec`] if there is no graph with these options.
    pub fn oracle_for(
        &self,
        text: &Encoded,
        options: &GraphOptions,
        evaluator: &mut dyn Evaluator,
    ) -> Result<OracleRun, ModelError> {
        let graph = self.client.graph_with(text.bucket, options)?;
        let inputs = self.client.inputs_for(text, options.lookup)?;
        let weights = self.weights_for(options.lookup)?;
        let execution = execute_with(&graph, &weights, &inputs, evaluator)
            .map_err(|e| ModelError::Input { reason: e.to_string() })?;
        let outputs = self.client.decode(text, &graph, execution.edge(graph.output))?;
        Ok(OracleRun { graph, execution, outputs })
    }

    /// The same text through the floating-point checkpoint.
    ///
    /// # Errors
    /// [`ModelError::Input`] if a token has no row in the embedding block.
    pub fn float(&self, text: &Encoded) -> Result<Outputs, ModelError> {
        self.client.interpret(text, self.checkpoint.forward(&text.ids, &text.types)?)
    }
}

/// Refuses checkpoints whose operations the fixed-point graph does not have.
fn exact(checkpoint: &Checkpoint) -> Result<(), ModelError> {
    match checkpoint.config.approximation {
        None => Ok(()),
        Some(_) => Err(ModelError::Unsupported {
            what:
                "it is approximated (softmax estimator, affine maps for LayerNorm), and there is no fixed-point graph \
                   of that yet"
                    .into(),
        }),
    }
}

/// Whether two descriptions are of models of the same form.
fn same_shapes(a: &ModelSpec, b: &ModelSpec) -> bool {
    let dense = |s: &ModelSpec| s.dense.iter().map(|d| (d.features, d.activation)).collect::<Vec<_>>();
    (a.hidden, a.heads, a.ffn, a.layers.len(), a.activation, a.pooling)
        == (b.hidden, b.heads, b.ffn, b.layers.len(), b.activation, b.pooling)
        && dense(a) == dense(b)
}
