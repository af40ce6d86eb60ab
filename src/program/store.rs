//! State by name: parameters, gradients and moments, and the slots that programs take turns with.

use crate::error::Result;
use crate::gpu::Gpu;
use crate::graph::{DType, Graph, chunk_rows, rows_of_block};
use crate::plan::{Pool, padded};
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

/// A device buffer that is counted while it lives.
pub(super) struct Held {
    pub(super) buffer: wgpu::Buffer,
    pub(super) gpu: Rc<Gpu>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gpu.release(self.buffer.size());
    }
}

/// A state variable's buffer, and what is in it.
#[derive(Clone)]
struct State {
    held: Rc<Held>,
    shape: Vec<usize>,
    dtype: DType,
}

/// State buffers (parameters, gradients, moments) shared by name between programs, and the slots
/// that they take turns with.
pub struct Store {
    gpu: Rc<Gpu>,
    buffers: RefCell<HashMap<String, State>>,
    pool: RefCell<(Pool, Vec<Rc<Held>>)>,
    /// Bytes written since the last submission; each waits in a staging buffer.
    staged: Cell<u64>,
}

/// Bytes of writes that may wait for a submission: a model that is streamed to the device must
/// not stand in staging buffers once more.
const STAGED_BYTES: u64 = 32 << 20;

impl Store {
    /// An empty store on `gpu`.
    pub fn new(gpu: &Rc<Gpu>) -> Self {
        Self {
            gpu: gpu.clone(),
            buffers: RefCell::default(),
            pool: RefCell::default(),
            staged: Cell::new(0),
        }
    }

    pub(super) fn get(
        &self,
        name: &str,
        shape: &[usize],
        dtype: DType,
        extra: u64,
    ) -> Result<Rc<Held>> {
        if let Some(state) = self.buffers.borrow().get(name) {
            let known = (state.shape.as_slice(), state.dtype);
            assert_eq!(known, (shape, dtype), "state {name} is something else in another program");
            return Ok(state.held.clone());
        }
        let bytes = padded(dtype.bytes(shape.iter().product())) + extra;
        // wgpu zero-fills new buffers: gradients and moments start at zero.
        let held = Rc::new(Held {
            buffer: self.gpu.buffer(name, bytes, storage())?,
            gpu: self.gpu.clone(),
        });
        let state = State { held: held.clone(), shape: shape.to_vec(), dtype };
        self.buffers.borrow_mut().insert(name.to_owned(), state);
        Ok(held)
    }

    /// Buffers for the slots of a program from the pool, which grows where it is too small.
    pub(super) fn slots(&self, bytes: &[u64]) -> Result<Vec<Rc<Held>>> {
        let (pool, buffers) = &mut *self.pool.borrow_mut();
        let places = pool.assign(bytes);
        for (i, &bytes) in pool.sizes().iter().enumerate().skip(buffers.len()) {
            let buffer = self.gpu.buffer(&format!("temporaries {i}"), bytes, storage())?;
            buffers.push(Rc::new(Held { buffer, gpu: self.gpu.clone() }));
        }
        Ok(places.into_iter().map(|place| buffers[place].clone()).collect())
    }

    /// An empty graph that trains nothing and reads parameters in the types they have here: for
    /// generation and evaluation.
    pub fn inference_graph(&self) -> Graph {
        let states = self.buffers.borrow();
        let stored: HashMap<String, DType> =
            states.iter().map(|(name, state)| (name.clone(), state.dtype)).collect();
        let mut g = Graph::new(self.gpu.target());
        g.train_only(|_| false);
        g.store_as(move |name| stored.get(name).copied().unwrap_or(DType::F32));
        g
    }

    /// How a state variable is stored; None if no program or write has created it.
    pub fn dtype(&self, name: &str) -> Option<DType> {
        self.buffers.borrow().get(name).map(|state| state.dtype)
    }

    /// Writes a state variable in the type it is stored in, creating it if it is new. `bytes` are
    /// its elements, row-major and little-endian, as a safetensors file has them.
    ///
    /// # Errors
    /// When the buffer does not fit the adapter, or the device is lost.
    ///
    /// # Panics
    /// When `bytes` does not fill `shape`, or the state has another shape or type already.
    pub fn write_bytes(
        &self,
        name: &str,
        shape: &[usize],
        dtype: DType,
        bytes: &[u8],
    ) -> Result<()> {
        let needed = dtype.bytes(shape.iter().product());
        assert_eq!(needed, bytes.len() as u64, "bytes of state {name}");
        let held = self.get(name, shape, dtype, 0)?;
        let bytes = self.by_blocks(shape, dtype, bytes);
        for (piece, at) in
            bytes.chunks(STAGED_BYTES as usize).zip((0..).step_by(STAGED_BYTES as usize))
        {
            self.gpu.write(&held.buffer, at, piece);
            self.staged.set(self.staged.get() + piece.len() as u64);
            if self.staged.get() > STAGED_BYTES {
                self.staged.set(0);
                self.gpu.submit([], &"writing parameters".into());
                self.gpu.wait()?;
            }
        }
        Ok(())
    }

    /// Writes values of a state variable, creating it with `shape` as 32-bit floats if it is new.
    /// One that is stored in a narrower type gets the nearest values.
    ///
    /// # Errors
    /// When the buffer does not fit the adapter.
    ///
    /// # Panics
    /// When `values` does not fill `shape`.
    pub fn write(&self, name: &str, shape: &[usize], values: &[f32]) -> Result<()> {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "state {name}");
        match self.dtype(name).unwrap_or(DType::F32) {
            DType::F32 => self.write_bytes(name, shape, DType::F32, bytemuck::cast_slice(values)),
            dtype => self.write_bytes(name, shape, dtype, &dtype.encode(values)),
        }
    }

    /// Reads a state variable as 32-bit floats, whatever type it is stored in; None if no program
    /// or write has created it.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn read(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let state = self.buffers.borrow().get(name).cloned();
        let len = state.map_or(0, |state| state.shape.iter().product());
        let mut values = Vec::with_capacity(len);
        let found = self.read_in_pieces(name, &mut |piece| values.extend(piece))?;
        Ok(found.then_some(values))
    }

    /// As [`Store::read`], a part of the values at a time, in their order; false if no program or write
    /// has created it.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn read_in_pieces(&self, name: &str, each: &mut dyn FnMut(&[f32])) -> Result<bool> {
        let Some(state) = self.buffers.borrow().get(name).cloned() else {
            return Ok(false);
        };
        let len = state.shape.iter().product();
        let bytes = state.dtype.bytes(len);
        // Elements that stand by themselves are read in pieces: the bytes never all stand beside the
        // values. Others have their scales behind them, in each block that is bound.
        let piece = match (state.dtype.block().0, self.block_of(&state.shape, state.dtype)) {
            (1, _) => STAGED_BYTES,
            (_, Some(elements)) => state.dtype.bytes(elements),
            (_, None) => bytes.max(1),
        };
        for at in (0..bytes).step_by(piece as usize) {
            let here = piece.min(bytes - at);
            let mut data = self.gpu.read_buffer(&state.held.buffer, at, padded(here))?;
            data.truncate(here as usize);
            each(&state.dtype.decode(&data));
        }
        Ok(true)
    }

    /// Elements of each block that such a state is bound in, if it is.
    fn block_of(&self, shape: &[usize], dtype: DType) -> Option<usize> {
        let (&rows, width) = shape.split_first()?;
        let most = self.gpu.target().binding_bytes;
        let rows = rows_of_block(shape, dtype, chunk_rows(rows), most)?;
        Some(rows * width.iter().product::<usize>())
    }

    /// The bytes of a state as they lie on the device. Where it is bound in blocks, each of them holds the
    /// integers and then the scales of its own elements.
    fn by_blocks<'a>(&self, shape: &[usize], dtype: DType, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let (elements, of_both) = dtype.block();
        let (Some(block), true) = (self.block_of(shape, dtype), elements > 1) else {
            return Cow::Borrowed(bytes);
        };
        let scale = 2;
        let blocks = bytes.len() / of_both;
        let (integers, scales) = bytes.split_at(blocks * (of_both - scale));
        let there = block / elements;
        let parts = integers.chunks(there * (of_both - scale)).zip(scales.chunks(there * scale));
        Cow::Owned(parts.flat_map(|(integers, scales)| [integers, scales].concat()).collect())
    }

    /// Names of all state variables, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.buffers.borrow().keys().cloned().collect();
        names.sort();
        names
    }
}

pub(super) fn storage() -> wgpu::BufferUsages {
    wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST
}
