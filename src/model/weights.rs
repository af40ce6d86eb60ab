//! The values of a model's parameters: read from a folder, drawn at random, or given; always one
//! parameter at a time, so that a model on a device needs no second copy in the machine's memory.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::adapter::{ADAPTER_WEIGHTS, Adapter};
use super::config::ModelConfig;
use super::init::drawn;
pub use super::init::{RandomWeights, init_weights};
use super::layout::{FileTensor, adapter_layout, layout};
use super::lora::is_factor;
use super::save::Unwritten;
use super::source::{SafetensorsFile, WeightSource, open_folder};
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

    /// The types that parameters which do not train are best kept in, by name: those that they came
    /// in, so that nothing is lost. The others are F32.
    fn storage(&self) -> Storage {
        Storage::new()
    }
}

/// Storage types by the names of parameters.
pub type Storage = HashMap<String, DType>;

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

/// The weights of a model folder, or of an adapter folder and its base: names, shapes and formats fit
/// the configuration, and no value is read yet.
pub struct FolderWeights {
    /// The model's own tensors, then perhaps those of an adapter.
    parts: Vec<TensorFiles>,
}

/// Tensors of a folder with their places in a model.
struct TensorFiles {
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
    /// `model.safetensors.index.json` lists, and checks them against the configuration; of an adapter
    /// folder those of its base, and of `adapter_model.safetensors`. The factors of a
    /// configuration that was adapted afterwards are not in its folder, and are left out.
    ///
    /// # Errors
    /// Missing, truncated and foreign files; and, all at once: tensors that are missing, that no
    /// parameter takes, of another shape, or of a number format other than F32, F16 and BF16.
    pub fn open(folder: &Path, config: &ModelConfig) -> Result<Self> {
        let adapter = Adapter::of(folder)?;
        let base = adapter.as_ref().map_or(folder, |adapter| &adapter.base);
        let mut parts = vec![TensorFiles::of_model(base, config)?];
        if adapter.is_some() {
            parts.push(TensorFiles::of_adapter(folder, config)?);
        }
        Ok(Self { parts })
    }

    /// The weights in another kind of file, `place`, checked as [`FolderWeights::open`] does.
    ///
    /// # Errors
    /// As [`FolderWeights::open`].
    pub(super) fn of_source(
        place: &Path,
        source: Box<dyn WeightSource>,
        config: &ModelConfig,
    ) -> Result<Self> {
        let part = TensorFiles::of_source(place, source, config, Vec::new())?;
        Ok(Self { parts: vec![part] })
    }

    /// The tensors as a file of the model's family has them, each as `dtype`; without one narrow
    /// floats stay as they are, and anything else becomes F32.
    pub(super) fn unwritten(&self, dtype: Option<DType>) -> impl Iterator<Item = Unwritten<'_>> {
        let tensors = self.parts.iter().flat_map(|part| {
            part.layout.iter().map(move |tensor| (part, tensor, &part.names[&tensor.name]))
        });
        tensors.map(move |(part, tensor, found)| {
            let own = part.source.info(found).map_or(DType::F32, |info| info.storage());
            let values = move || {
                let mut values = Vec::new();
                part.source.read(found, &mut values).map(|()| values)
            };
            Unwritten {
                name: tensor.name.clone(),
                shape: tensor.shape.clone(),
                dtype: dtype.unwrap_or(own),
                values: Box::new(values),
            }
        })
    }

    /// Whether an adapter's factors are among them.
    pub fn hold_factors(&self) -> bool {
        self.parts.len() > 1
    }

    /// Bytes of all parameters as [`FolderWeights::put`] stores them.
    pub fn stored_bytes(&self) -> u64 {
        let bytes = |part: &TensorFiles| -> u64 {
            part.layout.iter().map(|tensor| part.storage(tensor).bytes(tensor.len())).sum()
        };
        self.parts.iter().map(bytes).sum()
    }

    /// Puts the parameters on the device, 16-bit floats as they are: for generation and
    /// evaluation ([`Store::inference_graph`]).
    ///
    /// # Errors
    /// As [`ParameterValues::each`]; when a parameter does not fit the adapter.
    pub fn put(&self, store: &Store) -> Result<()> {
        put_as(self, store, &self.storage())
    }

    /// The values of one parameter.
    ///
    /// # Errors
    /// Those of the disk.
    ///
    /// # Panics
    /// When no tensor holds it.
    pub fn read(&self, parameter: &str) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        for part in &self.parts {
            for tensor in &part.layout {
                if let Some(place) = tensor.parts.iter().find(|p| p.parameter == parameter) {
                    part.source.read(&part.names[&tensor.name], &mut values)?;
                    return Ok(tensor.split(place, &values).into_owned());
                }
            }
        }
        panic!("no tensor holds {parameter}")
    }
}

/// Puts every parameter into `store` as the type that `storage` names for it, and else as F32.
///
/// # Errors
/// As [`ParameterValues::each`]; when a parameter does not fit the adapter.
pub fn put_as(values: &dyn ParameterValues, store: &Store, storage: &Storage) -> Result<()> {
    values.each(&mut |name, shape, values| match storage.get(name) {
        None | Some(DType::F32) => store.write(name, shape, values),
        Some(&dtype) => store.write_bytes(name, shape, dtype, &dtype.encode(values)),
    })
}

impl TensorFiles {
    fn of_model(folder: &Path, config: &ModelConfig) -> Result<Self> {
        let mut problems = Vec::new();
        let source = open_folder(folder, &mut problems)?;
        Self::of_source(folder, source, config, problems)
    }

    fn of_source(
        folder: &Path,
        source: Box<dyn WeightSource>,
        config: &ModelConfig,
        mut problems: Vec<Problem>,
    ) -> Result<Self> {
        let mut names = HashMap::new();
        for found in source.names() {
            let Some(name) = config.decoder.name_of(&found) else { continue };
            if let Some(other) = names.insert(name, found.clone()) {
                let what = format!("is the same tensor as {other}; remove one of them");
                problems.push(Problem::new(source.place(&found), what));
            }
        }
        let redundant = match config.head() {
            HEAD => None,
            head => names.remove(HEAD).map(|copy| (config.decoder.place(head).tensor, copy)),
        };
        let (folder, layout) = (folder.to_owned(), layout(config));
        Self { folder, source, layout, names, redundant }.checked(problems)
    }

    fn of_adapter(folder: &Path, config: &ModelConfig) -> Result<Self> {
        let source = Box::new(SafetensorsFile::open(&folder.join(ADAPTER_WEIGHTS))?);
        let names = source.names().into_iter().map(|name| (name.clone(), name)).collect();
        let (folder, layout) = (folder.to_owned(), adapter_layout(config));
        Self { folder, source, layout, names, redundant: None }.checked(Vec::new())
    }

    fn checked(self, mut problems: Vec<Problem>) -> Result<Self> {
        check(&self.folder, &*self.source, &self.layout, &self.names, &mut problems);
        match problems.is_empty() {
            true => Ok(self),
            false => Err(Error::input(summary(&self.folder), problems)),
        }
    }

    /// The type that a parameter is stored in: as in the file if it is a matrix of 16-bit floats.
    fn storage(&self, tensor: &FileTensor) -> DType {
        let info = self.source.info(&self.names[&tensor.name]);
        info.filter(|info| info.shape.len() > 1).map_or(DType::F32, |info| info.storage())
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

impl ParameterValues for FolderWeights {
    /// Also names, all at once, tensors with values that are not finite, and the redundant head
    /// of a tied model that differs from the embedding.
    fn each(&self, put: &mut Put) -> Result<()> {
        self.parts.iter().try_for_each(|part| part.each(put))
    }

    fn storage(&self) -> Storage {
        let of = |part: &TensorFiles| {
            let names = part.layout.iter().flat_map(|tensor| {
                let dtype = part.storage(tensor);
                tensor.parts.iter().map(move |p| (p.parameter.clone(), dtype))
            });
            names.collect::<Vec<_>>()
        };
        self.parts.iter().flat_map(of).collect()
    }
}

/// A model's values and, for the factors of its adapter, fresh ones.
pub struct FreshAdapter<'a> {
    /// The model's own.
    pub base: Box<dyn ParameterValues + 'a>,
    /// The model with its adapter.
    pub config: &'a ModelConfig,
    /// Seed of the factors.
    pub seed: u64,
}

impl ParameterValues for FreshAdapter<'_> {
    fn each(&self, put: &mut Put) -> Result<()> {
        self.base.each(put)?;
        let factors = self.config.parameters().iter().filter(|p| is_factor(&p.name));
        factors.into_iter().try_for_each(|p| put(&p.name, &p.shape, &drawn(self.seed, p)))
    }

    fn storage(&self) -> Storage {
        self.base.storage()
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
