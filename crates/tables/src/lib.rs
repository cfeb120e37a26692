//! Containers of rows other than plain lines: Parquet files, Arrow files and streams, and lines
//! compressed by gzip or zstd; and Parquet files of rows with their results.
//!
//! A row becomes the JSON text of one object, which is then read like a line: the library's
//! `request` alone defines what a row may have.

mod arrow_file;
mod compressed;
mod container;
mod errors;
#[doc(hidden)]
pub mod fuzzing;
mod json;
mod parquet_file;
mod results;
mod table;
mod thrift;

pub use compressed::{compress, lines};
pub use container::Container;
pub use json::{RowWriter, shape};
pub use results::{ResultsWriter, check_writable, with_results};
pub use table::{Batches, Table};
