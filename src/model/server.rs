//! The server's view of a model: the checkpoint, its numbers, and the integer weights.

use std::path::Path;

use super::{
    Checkpoint, ClientModel, Encoded, Execution, Graph, Manifest, ModelError, ModelSpec, Outputs, Precision,
    ServerWeights, bounds, execute,
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
}

/// A model as the server holds it.
pub struct Model {
    checkpoint: Checkpoint,
    provenance: Provenance,
    weights: ServerWeights,
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
    /// Reads a model folder.
    ///
    /// # Errors
    /// A [`ModelError`] whose sentence says what is wrong with the folder.
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        Self::worst_case(Checkpoint::read(dir)?, &Precision::default())
    }

    /// A model with proven magnitudes.
    ///
    /// # Errors
    /// [`ModelError`] if weights are too large or no ring is wide enough.
    pub fn worst_case(checkpoint: Checkpoint, precision: &Precision) -> Result<Self, ModelError> {
        let folded = quantize::fold(&checkpoint);
        let rounded = Rounded::new(&folded)?;
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
            spec,
            output: checkpoint.output,
            labels: checkpoint.labels.clone(),
            max_tokens: checkpoint.max_tokens,
            tokenizer: checkpoint.tokenizer.clone(),
            embedding: checkpoint.embedding.clone(),
        };
        Ok(Self { checkpoint, provenance, weights, client: ClientModel::new(manifest)? })
    }

    /// The checkpoint in real numbers.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
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
    pub fn weights(&self) -> &ServerWeights {
        &self.weights
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
        let graph = self.client.graph(text.bucket)?;
        let inputs = self.client.inputs(text)?;
        let execution =
            execute(&graph, &self.weights, &inputs).map_err(|e| ModelError::Input { reason: e.to_string() })?;
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
