//! An item of a file, as its benchmark reads it, and its line of results.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::{Map, Value, json};

use crate::eval::items::ItemText;
use crate::eval::metrics::fields::wrong;
use crate::eval::metrics::{Benchmark, Content};
use kudos::internals::conversation::kind_of;
use kudos::internals::request;
use kudos::internals::results::error_object;
use kudos::{Error, Result};

/// The key of an error in a line of results. Items of RM-Bench have an `error` of their own.
pub(crate) const ERROR: &str = "scoring_error";

/// An item of a file.
pub(crate) struct Entry<L> {
    /// Its place in the file, from 0.
    pub(crate) index: usize,
    /// Bytes of the file up to its end.
    pub(crate) end: u64,
    /// The item without the keys that results add, if it is an object.
    object: Option<Map<String, Value>>,
    /// Its id as JSON, if it has one.
    pub(crate) id: Option<String>,
    /// The item, or its error.
    pub(crate) content: Result<Content<L>>,
    /// The item's place in messages.
    place: String,
}

impl<L> Entry<L> {
    /// Reads item `index` of a file.
    pub(crate) fn read<B: Benchmark<Labels = L>>(
        benchmark: &B,
        index: usize,
        item: ItemText,
        file: &str,
    ) -> Self {
        let read = item.text.and_then(|text| object(&text));
        let id = read.as_ref().ok().and_then(|object| id::<B>(object));
        let place = match &id {
            Some(id) => format!("item {index} of {file}, `{}` {id}", B::ID),
            None => format!("item {index} of {file}"),
        };
        let content = read.as_ref().map_err(Error::clone).and_then(|object| benchmark.read(object));
        let object = read.ok().map(|mut object| {
            object.retain(|key, _| !is_added::<B>(key));
            object
        });
        let content = content.map_err(|error| error.at(&place));
        Self { index, end: item.end, object, id, content, place }
    }

    /// Returns the key by which results name the item: its id, or else its index.
    pub(crate) fn key(&self) -> String {
        key(self.id.as_deref(), self.index)
    }

    /// Returns an error of this item.
    pub(crate) fn failed(&self, error: Error) -> Error {
        error.at(&self.place)
    }

    /// Returns the item's line of results: the item with the added fields, or with the error.
    pub(crate) fn line(&self, result: Result<&[(&'static str, Value)], &Error>) -> String {
        let mut object = self.item();
        match result {
            Ok(fields) => object.extend(fields.iter().map(|(key, value)| ((*key).to_owned(), value.clone()))),
            Err(error) => {
                object.insert(ERROR.to_owned(), Value::Object(error_object(error)));
            }
        }
        Value::Object(object).to_string()
    }

    /// Returns whether a line of results, without the keys that results add, is this item.
    pub(crate) fn is_item(&self, object: &Map<String, Value>) -> bool {
        self.item() == *object
    }

    /// The item as an object; one that cannot be read has its index alone.
    fn item(&self) -> Map<String, Value> {
        let index = || Map::from_iter([("index".to_owned(), json!(self.index))]);
        self.object.clone().unwrap_or_else(index)
    }
}

/// Reads an object strictly.
pub(crate) fn object(text: &[u8]) -> Result<Map<String, Value>> {
    match request::strict(text)? {
        Value::Object(object) => Ok(object),
        other => Err(wrong(format!("the item is {}, expected an object", kind_of(&other)))),
    }
}

/// Returns whether results add a key to an item.
pub(crate) fn is_added<B: Benchmark>(key: &str) -> bool {
    B::ADDED.contains(&key) || key == ERROR
}

/// Returns the id of an item, as JSON.
pub(crate) fn id<B: Benchmark>(object: &Map<String, Value>) -> Option<String> {
    object.get(B::ID).filter(|id| !id.is_null()).map(Value::to_string)
}

/// Returns the key of an item with this id at this place.
pub(crate) fn key(id: Option<&str>, index: usize) -> String {
    id.map_or_else(|| format!("#{index}"), str::to_owned)
}

/// Returns a number that differs for items with different texts.
pub(crate) fn fingerprint<L>(content: &Content<L>) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.requests.hash(&mut hasher);
    hasher.finish()
}
