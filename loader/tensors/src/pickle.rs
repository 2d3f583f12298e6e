//! The pickles in which PyTorch says what its archives hold, read by a parser that knows tensors alone.
//!
//! A pickle is a program for a stack machine that may call anything. Here nothing is called: of its instructions those are known that PyTorch
//! writes for tensors, in dictionaries, lists and tuples of such; they build a description. The only names that may be spelled out are those of
//! PyTorch's storages, of the functions that put a tensor or a parameter together, and of the ordered dictionary; any other is refused by name, used
//! or not. All is bounded, so that a small pickle cannot become a large one: texts and tensors are shared and not copied, and what is made of them anew,
//! shapes and the names of tensors, has its bytes counted.

use std::cell::Cell;
use std::rc::Rc;

use crate::Number;

/// Values that are believed: those of a list of 300,000 tensors.
const MAX_VALUES: usize = 8 << 20;
/// How deep containers may lie in each other.
const MAX_DEPTH: usize = 16;
/// Tensors that are found in all.
const MAX_TENSORS: usize = 1 << 20;
/// Dimensions of a tensor, and arguments of a function.
const MAX_ITEMS: usize = 64;
/// Bytes of a name, of a tensor in its container or of a storage.
const MAX_NAME: usize = 1024;
/// Bytes of shapes, and of the names of tensors with those of their containers: 300,000 tensors take half of it.
const MAX_BYTES: usize = 32 << 20;

type Outcome<T> = std::result::Result<T, String>;

/// A tensor as the pickle describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Described {
    /// Which file of the archive: `data/KEY`.
    pub(crate) storage: Rc<str>,
    /// `Err` has the name of a storage of other numbers.
    pub(crate) number: Result<Number, &'static str>,
    /// Numbers that the storage has.
    pub(crate) numel: u64,
    /// Numbers before the first.
    pub(crate) offset: u64,
    pub(crate) shape: Vec<u64>,
    pub(crate) strides: Vec<u64>,
}

impl Described {
    /// Whether its numbers follow each other in the order of rows.
    pub(crate) fn is_contiguous(&self) -> bool {
        is_dense(self.shape.iter().zip(&self.strides).rev())
    }

    /// Whether it is a matrix whose numbers follow each other in the order of columns.
    pub(crate) fn is_transposed(&self) -> bool {
        self.shape.len() == 2 && !self.is_contiguous() && is_dense(self.shape.iter().zip(&self.strides))
    }
}

/// Whether numbers follow each other, by length and stride of each dimension from the innermost on.
fn is_dense<'a>(mut dimensions: impl Iterator<Item = (&'a u64, &'a u64)>) -> bool {
    let mut wanted = 1u64;
    dimensions.all(|(&n, &stride)| {
        let fits = n <= 1 || stride == wanted;
        wanted = wanted.saturating_mul(n);
        fits
    })
}

/// Where a value lies among all.
type Id = usize;

#[derive(Debug, Clone)]
enum Value {
    None,
    Bool,
    Int(i64),
    Text(Rc<str>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage { key: Rc<str>, number: Result<Number, &'static str>, numel: u64 },
    Tensor(Rc<Described>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Global {
    RebuildTensor,
    RebuildParameter,
    OrderedDict,
    Storage(Result<Number, &'static str>),
}

/// Only these are known.
fn global(module: &str, name: &str) -> Outcome<Global> {
    let storage = |number| Ok(Global::Storage(number));
    match (module, name) {
        ("torch._utils", "_rebuild_tensor_v2") => Ok(Global::RebuildTensor),
        ("torch._utils", "_rebuild_parameter") => Ok(Global::RebuildParameter),
        ("collections", "OrderedDict") => Ok(Global::OrderedDict),
        ("torch", "HalfStorage") => storage(Ok(Number::F16)),
        ("torch", "BFloat16Storage") => storage(Ok(Number::Bf16)),
        ("torch", "FloatStorage") => storage(Ok(Number::F32)),
        ("torch", "DoubleStorage") => storage(Ok(Number::F64)),
        ("torch", "CharStorage") => storage(Ok(Number::I8)),
        ("torch", "ShortStorage") => storage(Ok(Number::I16)),
        ("torch", "IntStorage") => storage(Ok(Number::I32)),
        ("torch", "LongStorage") => storage(Ok(Number::I64)),
        ("torch", "ByteStorage") => storage(Ok(Number::U8)),
        ("torch", "BoolStorage") => storage(Ok(Number::Bool)),
        _ => Err(format!(
            "its pickle names {}.{}, and only tensors are read, in dictionaries and lists of them: nothing of a pickle is executed. Load it where \
             you trust it, and save its tensors alone, or as safetensors",
            shown(module),
            shown(name)
        )),
    }
}

fn shown(name: &str) -> String {
    name.chars().take(100).flat_map(char::escape_debug).collect()
}

/// What is found in a pickle.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Tensors with their names: those of nested containers are joined by dots, and elements of lists are numbered.
    pub(crate) tensors: Vec<(String, Rc<Described>)>,
    /// Names of the lists that tensors are elements of.
    pub(crate) lists: Vec<String>,
}

/// The tensors of a pickle.
pub(crate) fn tensors(pickle: &[u8]) -> Outcome<Found> {
    let mut machine = Machine {
        bytes: pickle,
        at: 0,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        visits: Cell::new(0),
        bytes_made: Cell::new(0),
    };
    let top = machine.run()?;
    let mut found = Found::default();
    machine.collect(top, &mut Vec::new(), &mut found)?;
    Ok(found)
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: Vec<Option<Id>>,
    /// Values that were looked at for tensors: those that are shared, as often as they are shared.
    visits: Cell<usize>,
    /// Bytes of shapes and names.
    bytes_made: Cell<usize>,
}

const DAMAGED: &str = "damaged: its pickle is not one of tensors";

fn damaged() -> String {
    DAMAGED.into()
}

impl Machine<'_> {
    fn take(&mut self, length: usize) -> Outcome<&[u8]> {
        let end = self
            .at
            .checked_add(length)
            .filter(|&end| end <= self.bytes.len())
            .ok_or("cut off or damaged: its pickle does not end")?;
        let bytes = &self.bytes[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn byte(&mut self) -> Outcome<usize> {
        Ok(usize::from(self.take(1)?[0]))
    }

    fn four(&mut self) -> Outcome<u32> {
        let b = self.take(4)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn line(&mut self) -> Outcome<String> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&b| b == b'\n').ok_or_else(damaged)?;
        let line = std::str::from_utf8(&rest[..length]).map_err(|_| damaged())?.to_string();
        self.at += length + 1;
        Ok(line)
    }

    fn text(&mut self, length: usize) -> Outcome<()> {
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| damaged())?.into();
        self.push(Value::Text(text))
    }

    fn push(&mut self, value: Value) -> Outcome<()> {
        if self.values.len() >= MAX_VALUES {
            return Err("its pickle has more values than any of tensors".into());
        }
        self.values.push(value);
        self.stack.push(self.values.len() - 1);
        Ok(())
    }

    /// Counts bytes that are made beside those of the pickle.
    fn makes(&self, bytes: usize) -> Outcome<()> {
        self.bytes_made.set(self.bytes_made.get().saturating_add(bytes));
        if self.bytes_made.get() > MAX_BYTES {
            return Err(format!(
                "the names and shapes of its tensors take more than {} MiB: save fewer tensors in a file",
                MAX_BYTES >> 20
            ));
        }
        Ok(())
    }

    fn pop(&mut self) -> Outcome<Id> {
        // What lies below a mark belongs to somebody else.
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() > floor { self.stack.pop().ok_or_else(damaged) } else { Err(damaged()) }
    }

    fn above_mark(&mut self) -> Outcome<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(damaged)?;
        Ok(self.stack.split_off(mark))
    }

    fn remember(&mut self, slot: usize) -> Outcome<()> {
        let top = *self.stack.last().ok_or_else(damaged)?;
        // Slots are handed out in turn.
        if slot > self.values.len() {
            return Err(damaged());
        }
        if self.memo.len() <= slot {
            self.memo.resize(slot + 1, None);
        }
        self.memo[slot] = Some(top);
        Ok(())
    }

    fn recall(&mut self, slot: usize) -> Outcome<()> {
        let id = self.memo.get(slot).copied().flatten().ok_or_else(damaged)?;
        if self.stack.len() >= MAX_VALUES {
            return Err(damaged());
        }
        self.stack.push(id);
        Ok(())
    }

    /// Follows the program to its end.
    fn run(&mut self) -> Outcome<Id> {
        loop {
            let instruction = self.take(1)?[0];
            match instruction {
                0x80 => drop(self.take(1)?),
                0x95 => drop(self.take(8)?),
                b'(' => {
                    if self.marks.len() >= MAX_VALUES {
                        return Err(damaged());
                    }
                    self.marks.push(self.stack.len());
                }
                b'N' => self.push(Value::None)?,
                0x88 | 0x89 => self.push(Value::Bool)?,
                b'K' => {
                    let n = self.byte()?;
                    self.push(Value::Int(n as i64))?;
                }
                b'M' => {
                    let n = i64::from(u16::from_le_bytes(self.take(2)?.try_into().map_err(|_| damaged())?));
                    self.push(Value::Int(n))?;
                }
                b'J' => {
                    let n = self.four()? as i32;
                    self.push(Value::Int(i64::from(n)))?;
                }
                0x8a => self.long()?,
                b'X' => {
                    let length = self.four()? as usize;
                    self.text(length)?;
                }
                0x8c => {
                    let length = self.byte()?;
                    self.text(length)?;
                }
                b')' => self.push(Value::Tuple(Vec::new()))?,
                b'}' => self.push(Value::Dict(Vec::new()))?,
                b']' => self.push(Value::List(Vec::new()))?,
                b't' => {
                    let items = self.above_mark()?;
                    self.push(Value::Tuple(items))?;
                }
                n @ 0x85..=0x87 => {
                    let mut items = (0..n - 0x84).map(|_| self.pop()).collect::<Outcome<Vec<Id>>>()?;
                    items.reverse();
                    self.push(Value::Tuple(items))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend_list(&[item])?;
                }
                b'e' => {
                    let items = self.above_mark()?;
                    self.extend_list(&items)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.extend_dict(&[key, value])?;
                }
                b'u' => {
                    let items = self.above_mark()?;
                    self.extend_dict(&items)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push(Value::Global(global(&module, &name)?))?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Value::Text(module), Value::Text(name)) = (&self.values[module], &self.values[name]) else {
                        return Err(damaged());
                    };
                    let named = global(module, name)?;
                    self.push(Value::Global(named))?;
                }
                b'Q' => self.storage()?,
                b'R' => self.reduce()?,
                // Attributes, which an ordered dictionary of weights has: of no matter here.
                b'b' => {
                    self.pop()?;
                    let of = *self.stack.last().ok_or_else(damaged)?;
                    if !matches!(self.values[of], Value::Dict(_)) {
                        return Err(damaged());
                    }
                }
                b'q' => {
                    let slot = self.byte()?;
                    self.remember(slot)?;
                }
                b'r' => {
                    let slot = self.four()? as usize;
                    self.remember(slot)?;
                }
                0x94 => self.remember(self.memo.len())?,
                b'h' => {
                    let slot = self.byte()?;
                    self.recall(slot)?;
                }
                b'j' => {
                    let slot = self.four()? as usize;
                    self.recall(slot)?;
                }
                b'.' if self.marks.is_empty() => return self.pop(),
                b'.' => return Err(damaged()),
                other => {
                    return Err(format!(
                        "its pickle has the instruction {other:#04x}, which no tensor needs: save its tensors alone, or as safetensors"
                    ));
                }
            }
        }
    }

    /// A whole number of any length, of which those of 64 bits are read.
    fn long(&mut self) -> Outcome<()> {
        let length = self.byte()?;
        let bytes = self.take(length)?;
        if bytes.len() > 8 {
            return Err(damaged());
        }
        let negative = bytes.last().is_some_and(|&b| b & 0x80 != 0);
        let mut whole = [if negative { 0xff } else { 0 }; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(whole)))
    }

    fn extend_list(&mut self, items: &[Id]) -> Outcome<()> {
        let list = *self.stack.last().ok_or_else(damaged)?;
        match &mut self.values[list] {
            Value::List(list) => list.extend_from_slice(items),
            _ => return Err(damaged()),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: &[Id]) -> Outcome<()> {
        let dict = *self.stack.last().ok_or_else(damaged)?;
        match &mut self.values[dict] {
            Value::Dict(dict) if items.len().is_multiple_of(2) => {
                dict.extend(items.as_chunks::<2>().0.iter().map(|[key, value]| (*key, *value)))
            }
            _ => return Err(damaged()),
        }
        Ok(())
    }

    fn tuple(&self, id: Id) -> Outcome<&[Id]> {
        match &self.values[id] {
            Value::Tuple(items) if items.len() <= MAX_ITEMS => Ok(items),
            _ => Err(damaged()),
        }
    }

    fn count(&self, id: Id) -> Outcome<u64> {
        match &self.values[id] {
            Value::Int(n) => u64::try_from(*n).map_err(|_| damaged()),
            _ => Err(damaged()),
        }
    }

    fn counts(&self, id: Id) -> Outcome<Vec<u64>> {
        self.tuple(id)?.iter().map(|&id| self.count(id)).collect()
    }

    /// A storage by its persistent id: ('storage', type, key, device, numbers).
    fn storage(&mut self) -> Outcome<()> {
        let id = self.pop()?;
        let &[mark, kind, key, _, numel] = self.tuple(id)? else { return Err(damaged()) };
        let (Value::Text(mark), Value::Global(Global::Storage(number)), Value::Text(key)) =
            (&self.values[mark], &self.values[kind], &self.values[key])
        else {
            return Err(damaged());
        };
        if &**mark != "storage" {
            return Err(damaged());
        }
        if key.len() > MAX_NAME {
            return Err(format!("damaged: the name of a storage has {} bytes: {MAX_NAME} at most are read", key.len()));
        }
        let storage = Value::Storage { key: key.clone(), number: *number, numel: self.count(numel)? };
        self.push(storage)
    }

    /// What PyTorch's functions make of their arguments.
    fn reduce(&mut self) -> Outcome<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let arguments = self.tuple(arguments)?.to_vec();
        let Value::Global(function) = &self.values[function] else { return Err(damaged()) };
        match (function, arguments.as_slice()) {
            (Global::OrderedDict, []) => self.push(Value::Dict(Vec::new())),
            (Global::RebuildTensor, &[storage, offset, shape, strides, ..]) => {
                let Value::Storage { key, number, numel } = &self.values[storage] else { return Err(damaged()) };
                let tensor = Described {
                    storage: key.clone(),
                    number: *number,
                    numel: *numel,
                    offset: self.count(offset)?,
                    shape: self.counts(shape)?,
                    strides: self.counts(strides)?,
                };
                if tensor.shape.len() != tensor.strides.len() {
                    return Err(damaged());
                }
                self.makes(size_of_val(&*tensor.shape) + size_of_val(&*tensor.strides))?;
                self.push(Value::Tensor(Rc::new(tensor)))
            }
            (Global::RebuildParameter, &[tensor, ..]) if matches!(self.values[tensor], Value::Tensor(_)) => {
                self.stack.push(tensor);
                Ok(())
            }
            _ => Err(damaged()),
        }
    }

    /// Finds the tensors below a value. A value that is inside itself ends at the depth that containers may have.
    fn collect(&self, id: Id, path: &mut Vec<Rc<str>>, found: &mut Found) -> Outcome<()> {
        self.visits.set(self.visits.get() + 1);
        if path.len() > MAX_DEPTH || found.tensors.len() > MAX_TENSORS || self.visits.get() > MAX_VALUES {
            return Err(format!(
                "its pickle has more than {MAX_TENSORS} tensors, or containers more than {MAX_DEPTH} deep"
            ));
        }
        match &self.values[id] {
            Value::Tensor(tensor) => {
                let name = path.join(".");
                self.makes(name.len() + size_of_val(&*tensor.shape))?;
                found.tensors.push((name, Rc::clone(tensor)));
            }
            Value::List(items) | Value::Tuple(items) => {
                let has_tensors = items.iter().any(|&item| matches!(self.values[item], Value::Tensor(_)));
                if has_tensors && matches!(self.values[id], Value::List(_)) {
                    let name = path.join(".");
                    self.makes(name.len())?;
                    found.lists.push(name);
                }
                for (i, &item) in items.iter().enumerate() {
                    self.below(item, i.to_string().into(), path, found)?;
                }
            }
            Value::Dict(pairs) => {
                for &(key, value) in pairs {
                    let name = match &self.values[key] {
                        Value::Text(text) if text.len() <= MAX_NAME => Rc::clone(text),
                        Value::Int(n) => n.to_string().into(),
                        _ => return Err(damaged()),
                    };
                    self.below(value, name, path, found)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn below(&self, id: Id, name: Rc<str>, path: &mut Vec<Rc<str>>, found: &mut Found) -> Outcome<()> {
        path.push(name);
        let collected = self.collect(id, path, found);
        path.pop();
        collected
    }
}

#[cfg(test)]
mod tests;
