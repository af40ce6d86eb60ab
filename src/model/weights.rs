//! The values of a model's parameters: read from a folder, drawn at random, or given; always one
//! parameter at a time, so that a model on a device needs no second copy in the machine's memory.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::config::ModelConfig;
pub use super::init::{RandomWeights, init_weights};
use super::layout::{FileTensor, layout};
use super::source::{WeightSource, open_folder};
use crate::error::{Error, Problem, Result};
use crate::graph::DType;
use crate::program::Store;

/// Values with a shape, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The values; as many as the product of `shape`.
    pub data: Vec<f32>,
}

/// Values for the parameters of a model.
pub trait ParameterValues {
    /// Hands every parameter to `put`: name, shape, values.
    ///
    /// # Errors
    /// Those of `put`, and values that cannot be read or used.
    fn each(&self, put: &mut Put) -> Result<()>;
}

/// Takes a parameter: name, shape, values.
pub type Put<'a> = dyn FnMut(&str, &[usize], &[f32]) -> Result<()> + 'a;

impl ParameterValues for BTreeMap<String, Tensor> {
    fn each(&self, put: &mut Put) -> Result<()> {
        self.iter().try_for_each(|(name, t)| put(name, &t.shape, &t.data))
    }
}

/// All values at once, by name: for small models and tests.
///
/// # Errors
/// As [`ParameterValues::each`].
pub fn collect(values: &dyn ParameterValues) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    values.each(&mut |name, shape, data| {
        tensors.insert(name.to_owned(), Tensor { shape: shape.to_vec(), data: data.to_vec() });
        Ok(())
    })?;
    Ok(tensors)
}

/// The weights of a model folder: names, shapes and formats fit the configuration, and no value
/// is read yet.
pub struct FolderWeights {
    folder: PathBuf,
    source: Box<dyn WeightSource>,
    layout: Vec<FileTensor>,
    /// The source's names by the layout's.
    names: HashMap<String, String>,
    /// Name of a tied head's tensor, and the source's name for the redundant copy of it.
    redundant: Option<(String, String)>,
}

/// The tensor that an untied head has in a file.
const HEAD: &str = "lm_head.weight";

impl FolderWeights {
    /// Reads the headers of `model.safetensors`, or of the shards that
    /// `model.safetensors.index.json` lists, and checks them against the configuration.
    ///
    /// # Errors
    /// Missing, truncated and foreign files; and, all at once: tensors that are missing, that no
    /// parameter takes, of another shape, or of a number format other than F32, F16 and BF16.
    pub fn open(folder: &Path, config: &ModelConfig) -> Result<Self> {
        let mut problems = Vec::new();
        let source = open_folder(folder, &mut problems)?;
        let mut names = HashMap::new();
        for found in source.names() {
            let Some(name) = config.decoder.name_of(&found) else { continue };
            if let Some(other) = names.insert(name, found.clone()) {
                let what = format!("is the same tensor as {other}; remove one of them");
                problems.push(Problem::new(source.place(&found), what));
            }
        }
        let layout = layout(config);
        let redundant = match config.head() {
            HEAD => None,
            head => names.remove(HEAD).map(|copy| (config.decoder.place(head).tensor, copy)),
        };
        check(folder, source.as_ref(), &layout, &names, &mut problems);
        if problems.is_empty() {
            return Ok(Self { folder: folder.to_owned(), source, layout, names, redundant });
        }
        Err(Error::input(summary(folder), problems))
    }

    /// The type that a parameter is stored in: as in the file if it is a matrix of 16-bit floats.
    fn storage(&self, tensor: &FileTensor) -> DType {
        let info = self.source.info(&self.names[&tensor.name]);
        info.filter(|info| info.shape.len() > 1).map_or(DType::F32, |info| info.storage())
    }

    /// Bytes of all parameters as [`FolderWeights::put`] stores them.
    pub fn stored_bytes(&self) -> u64 {
        self.layout.iter().map(|tensor| self.storage(tensor).bytes(tensor.len())).sum()
    }

    /// Puts the parameters on the device, 16-bit floats as they are: for generation and
    /// evaluation ([`Store::inference_graph`]). Training wants F32 throughout.
    ///
    /// # Errors
    /// As [`ParameterValues::each`]; when a parameter does not fit the adapter.
    pub fn put(&self, store: &Store) -> Result<()> {
        let stored: HashMap<&str, DType> = self
            .layout
            .iter()
            .flat_map(|t| t.parts.iter().map(|p| (p.parameter.as_str(), self.storage(t))))
            .collect();
        self.each(&mut |name, shape, values| match stored[name] {
            DType::F32 => store.write(name, shape, values),
            dtype => store.write_bytes(name, shape, dtype, &dtype.encode(values)),
        })
    }

    /// A tied head's own copy must be the embedding.
    fn check_redundant(
        &self,
        tensor: &str,
        values: &[f32],
        problems: &mut Vec<Problem>,
    ) -> Result<()> {
        let Some((_, copy)) = self.redundant.as_ref().filter(|(tied, _)| tied == tensor) else {
            return Ok(());
        };
        let mut head = Vec::new();
        self.source.read(copy, &mut head)?;
        if head != values {
            problems.push(Problem::new(
                self.source.place(copy),
                format!(
                    "differs from {tensor}, but config.json says tie_word_embeddings: true; \
                     set it to false or remove the tensor"
                ),
            ));
        }
        Ok(())
    }
}

impl ParameterValues for FolderWeights {
    /// Also names, all at once, tensors with values that are not finite, and the redundant head
    /// of a tied model that differs from the embedding.
    fn each(&self, put: &mut Put) -> Result<()> {
        let mut problems = Vec::new();
        let mut values = Vec::new();
        for tensor in &self.layout {
            let found = &self.names[&tensor.name];
            self.source.read(found, &mut values)?;
            if let Some(at) = values.iter().position(|x| !x.is_finite()) {
                let bad = values.iter().filter(|x| !x.is_finite()).count();
                problems.push(Problem::new(
                    self.source.place(found),
                    format!("has {bad} values that are not finite, the first at index {at}; the file is damaged or its training diverged"),
                ));
            }
            self.check_redundant(&tensor.name, &values, &mut problems)?;
            for part in &tensor.parts {
                put(&part.parameter, &part.shape, &tensor.split(part, &values))?;
            }
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::input(summary(&self.folder), problems))
    }
}

fn summary(folder: &Path) -> String {
    format!("the weights in {} cannot be used with its config.json", folder.display())
}

/// The source's tensors against the layout's.
fn check(
    folder: &Path,
    source: &dyn WeightSource,
    layout: &[FileTensor],
    names: &HashMap<String, String>,
    problems: &mut Vec<Problem>,
) {
    for tensor in layout {
        let Some(found) = names.get(&tensor.name) else {
            problems.push(Problem::new(
                format!("{}: {}", folder.display(), tensor.name),
                format!("is missing; the configuration asks for shape {:?}", tensor.shape),
            ));
            continue;
        };
        // None: the index is wrong about it, which has its problem already.
        let Some(info) = source.info(found) else { continue };
        if info.shape != tensor.shape {
            problems.push(Problem::new(
                source.place(found),
                format!(
                    "has shape {:?}, but the configuration asks for {:?}",
                    info.shape, tensor.shape
                ),
            ));
        }
        problems.extend(info.problem().map(|what| Problem::new(source.place(found), what)));
    }
    let taken: std::collections::HashSet<&str> = layout.iter().map(|t| t.name.as_str()).collect();
    let mut unused: Vec<&String> =
        names.iter().filter(|(name, _)| !taken.contains(name.as_str())).map(|(_, f)| f).collect();
    unused.sort();
    for found in unused {
        let Some(info) = source.info(found) else { continue };
        problems.push(Problem::new(
            source.place(found),
            format!("with shape {:?} has no place in the configuration's model", info.shape),
        ));
    }
}

#[cfg(test)]
#[path = "weights_tests.rs"]
pub(crate) mod tests;
