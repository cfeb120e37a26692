//! Thrift's compact protocol, in which Parquet files have their metadata, as strictly as the checks
//! of that need: a field that is known has the type that the decoder of the file takes it for.

use std::io::{self, Read};

/// Nested structs, lists and maps in a field that is skipped, at most.
const DEPTH_MAX: usize = 64;

/// The type of a known field.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Type {
    Bool,
    Byte,
    I32,
    Binary,
    /// A struct with these fields, numbered from 1.
    Struct(&'static [Type]),
    /// A type of which nothing is known, as of fields with other numbers.
    Any,
}

/// The type of a field or an element as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bool,
    Byte,
    I16,
    I32,
    I64,
    Double,
    Binary,
    List,
    Map,
    Struct,
    Uuid,
}

/// A reader of values, one after another.
pub(crate) struct Thrift<R>(pub(crate) R);

impl<R: Read> Thrift<R> {
    /// Reads a struct with these fields, numbered from 1, and calls `visit` with the number and the
    /// value of each integer of 32 bits in it.
    pub(crate) fn structure(&mut self, fields: &[Type], visit: &mut dyn FnMut(usize, i32)) -> io::Result<()> {
        let mut number = 0;
        while let Some(kind) = self.field(&mut number)? {
            let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
            let known = index.and_then(|index| fields.get(index));
            match (known.copied().unwrap_or(Type::Any), kind) {
                (Type::I32, Kind::I32) => visit(number as usize, self.integer()?),
                (Type::Struct(fields), Kind::Struct) => self.structure(fields, &mut |_, _| ())?,
                (Type::Bool, Kind::Bool)
                | (Type::Byte, Kind::Byte)
                | (Type::Binary, Kind::Binary)
                | (Type::Any, _) => self.skip(kind, DEPTH_MAX)?,
                (known, _) => return wrong(format!("field {number} is {kind:?}, expected {known:?}")),
            }
        }
        Ok(())
    }

    /// Reads the beginning of a field that has to be number `number` and a list of structs, and
    /// returns its length, after one integer of 32 bits as field 1.
    pub(crate) fn list_after_integer(&mut self, number: i16) -> io::Result<usize> {
        let mut found = 0;
        if self.field(&mut found)? != Some(Kind::I32) || found != 1 {
            return wrong("the first field is no integer".to_owned());
        }
        self.integer()?;
        if self.field(&mut found)? != Some(Kind::List) || found != number {
            return wrong(format!("field {number} is no list"));
        }
        match self.list()? {
            (Kind::Struct, len) => Ok(len),
            (kind, _) => wrong(format!("field {number} is a list of {kind:?}")),
        }
    }

    /// Reads the beginning of a struct's next field, whose number it puts into `number`; `None`
    /// after the last one.
    fn field(&mut self, number: &mut i16) -> io::Result<Option<Kind>> {
        let byte = self.byte()?;
        let (step, kind) = (i16::from(byte >> 4), byte & 15);
        if kind == 0 {
            return Ok(None);
        }
        let next = match step {
            0 => i16::try_from(self.zigzag()?).ok(),
            step => number.checked_add(step),
        };
        *number = next.ok_or_else(|| invalid("a field's number is too large".to_owned()))?;
        kind_of(kind).map(Some)
    }

    /// Reads the beginning of a list: the kind of its elements, and their number.
    fn list(&mut self) -> io::Result<(Kind, usize)> {
        let byte = self.byte()?;
        // Some writers give an empty list no type.
        if byte == 0 {
            return Ok((Kind::Byte, 0));
        }
        let len = match byte >> 4 {
            15 => self.length()?,
            len => usize::from(len),
        };
        Ok((kind_of(byte & 15)?, len))
    }

    fn skip(&mut self, kind: Kind, depth: usize) -> io::Result<()> {
        let Some(depth) = depth.checked_sub(1) else { return wrong("it is nested too deep".to_owned()) };
        match kind {
            // In the type of its field; the decoder takes lists of them for empty, too.
            Kind::Bool => Ok(()),
            Kind::Byte => self.byte().map(drop),
            Kind::I16 | Kind::I32 | Kind::I64 => self.varint().map(drop),
            Kind::Double => self.skip_bytes(8),
            Kind::Uuid => self.skip_bytes(16),
            Kind::Binary => {
                let len = self.varint()?;
                self.skip_bytes(len)
            }
            Kind::List => match self.list()? {
                (Kind::Bool, _) => Ok(()),
                (kind, len) => (0..len).try_for_each(|_| self.skip(kind, depth)),
            },
            Kind::Map => {
                let len = self.length()?;
                if len == 0 {
                    return Ok(());
                }
                let byte = self.byte()?;
                let (key, value) = (kind_of(byte >> 4)?, kind_of(byte & 15)?);
                if (key, value) == (Kind::Bool, Kind::Bool) {
                    return Ok(());
                }
                (0..len).try_for_each(|_| {
                    self.skip(key, depth)?;
                    self.skip(value, depth)
                })
            }
            Kind::Struct => {
                while let Some(kind) = self.field(&mut 0)? {
                    self.skip(kind, depth)?;
                }
                Ok(())
            }
        }
    }

    fn skip_bytes(&mut self, len: u64) -> io::Result<()> {
        match io::copy(&mut self.0.by_ref().take(len), &mut io::sink())? {
            copied if copied == len => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.0.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn length(&mut self) -> io::Result<usize> {
        let len = i32::try_from(self.varint()?).ok().and_then(|len| usize::try_from(len).ok());
        len.ok_or_else(|| invalid("a length is too large".to_owned()))
    }

    fn integer(&mut self) -> io::Result<i32> {
        i32::try_from(self.zigzag()?).map_err(|_| invalid("an integer has more than 32 bits".to_owned()))
    }

    fn zigzag(&mut self) -> io::Result<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn varint(&mut self) -> io::Result<u64> {
        let mut value = 0;
        // The tenth byte has one bit of 64 left.
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        match self.byte()? {
            byte @ (0 | 1) => Ok(value | u64::from(byte) << 63),
            _ => wrong("an integer has more than 64 bits".to_owned()),
        }
    }
}

fn kind_of(kind: u8) -> io::Result<Kind> {
    Ok(match kind {
        1 | 2 => Kind::Bool,
        3 => Kind::Byte,
        4 => Kind::I16,
        5 => Kind::I32,
        6 => Kind::I64,
        7 => Kind::Double,
        8 => Kind::Binary,
        9 | 10 => Kind::List,
        11 => Kind::Map,
        12 => Kind::Struct,
        13 => Kind::Uuid,
        kind => return wrong(format!("there is no type {kind}")),
    })
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

fn wrong<T>(message: String) -> io::Result<T> {
    Err(invalid(message))
}
