//! Recorded and generated streams of ids: the file format, generators, and what a stream says about caches.

mod curve;
mod format;
mod reader;
mod recency;
mod stream;
mod synth;
mod writer;

pub use curve::CurvePoint;
pub use format::{Bags, Description, TRACE_BAGS_MAX, TRACE_ROWS_MAX, TRACE_TABLES_MAX, Totals, TraceTable, VERSION};
pub use reader::TraceReader;
pub use recency::RecencyStack;
pub use stream::{AccessStream, Sample, Selection};
pub use synth::{Law, Scatter, Skew, SynthConfig, SynthTable, Zipf, synthesize};
pub use writer::TraceWriter;
