//! [`Values`]: what a pickle has made.
//!
//! A [`Value`] is a number or an index into [`Values`], and is copied as such: to put one into the
//! memo, or a list into itself, costs one entry, and nothing is ever walked recursively.

use safetensors::Dtype;

/// One value of a pickle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// A number that no tensor depends on.
    Float,
    Text(Span),
    Tuple(Span),
    /// An index of `lists`.
    List(usize),
    /// An index of `dicts`.
    Dict(usize),
    Global(Global),
    /// An index of `storages`.
    Storage(usize),
    /// An index of `tensors`.
    Tensor(usize),
}

/// A range of `text` or of `items`, neither of which grows beyond 32 bits: see the machine's
/// limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Span {
    start: u32,
    end: u32,
}

/// A function or class that a pickle may name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Global {
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`.
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`.
    RebuildParameter,
    /// `torch.FloatStorage` and its like.
    Storage(Dtype),
}

/// An array of elements elsewhere in the file, as the pickle describes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage {
    pub(super) dtype: Dtype,
    pub(super) key: Span,
    /// Elements.
    pub(super) count: i64,
}

/// A view of a storage, as the pickle describes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tensor {
    /// An index of `storages`.
    pub(super) storage: usize,
    /// Elements before its first one.
    pub(super) offset: i64,
    pub(super) shape: Span,
    pub(super) strides: Span,
}

/// All values of a pickle that are not numbers.
#[derive(Debug, Default)]
pub(super) struct Values {
    text: String,
    items: Vec<Value>,
    pub(super) lists: Vec<Vec<Value>>,
    /// Entries in the order in which they were set.
    pub(super) dicts: Vec<Vec<(Value, Value)>>,
    pub(super) storages: Vec<Storage>,
    pub(super) tensors: Vec<Tensor>,
}

impl Values {
    /// Bytes of all strings.
    pub(super) fn text_bytes(&self) -> usize {
        self.text.len()
    }

    pub(super) fn add_text(&mut self, text: &str) -> Value {
        let start = self.text.len();
        self.text.push_str(text);
        Value::Text(Span::new(start, self.text.len()))
    }

    pub(super) fn add_tuple(&mut self, items: impl Iterator<Item = Value>) -> Value {
        let start = self.items.len();
        self.items.extend(items);
        Value::Tuple(Span::new(start, self.items.len()))
    }

    pub(super) fn add_list(&mut self) -> Value {
        self.lists.push(Vec::new());
        Value::List(self.lists.len() - 1)
    }

    pub(super) fn add_dict(&mut self) -> Value {
        self.dicts.push(Vec::new());
        Value::Dict(self.dicts.len() - 1)
    }

    pub(super) fn add_storage(&mut self, storage: Storage) -> Value {
        self.storages.push(storage);
        Value::Storage(self.storages.len() - 1)
    }

    pub(super) fn add_tensor(&mut self, tensor: Tensor) -> Value {
        self.tensors.push(tensor);
        Value::Tensor(self.tensors.len() - 1)
    }

    /// The string of a [`Value::Text`].
    pub(super) fn text(&self, span: Span) -> &str {
        &self.text[span.range()]
    }

    /// The items of a [`Value::Tuple`].
    pub(super) fn tuple(&self, span: Span) -> &[Value] {
        &self.items[span.range()]
    }

    /// The value of a dict's entry; the last one where it was set more than once.
    pub(super) fn entry(&self, dict: usize, key: &str) -> Option<Value> {
        let is_key = |found: &Value| matches!(*found, Value::Text(span) if self.text(span) == key);
        self.dicts[dict].iter().rev().find(|(found, _)| is_key(found)).map(|(_, value)| *value)
    }
}

impl Value {
    /// The value's kind, for errors.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a bool",
            Self::Int(_) => "an integer",
            Self::Float => "a float",
            Self::Text(_) => "a string",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dict",
            Self::Global(_) => "a class or function",
            Self::Storage(_) => "a storage without a tensor",
            Self::Tensor(_) => "a tensor",
        }
    }
}

impl Span {
    /// # Panics
    ///
    /// When `end` does not fit 32 bits, which the machine's limits exclude.
    fn new(start: usize, end: usize) -> Self {
        let narrow = |at| u32::try_from(at).expect("within the limits of a pickle");
        Self { start: narrow(start), end: narrow(end) }
    }

    fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}
