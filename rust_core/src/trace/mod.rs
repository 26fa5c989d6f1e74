//! Recorded and generated streams of ids: the file format, generators, and what a stream says about caches.

mod curve;
mod format;
mod reader;
mod recency;
mod stream;
mod synth;
mod writer;

pub use curve::CurvePoint;
pub use format::{Bags, Description, Totals, TraceTable};
pub use reader::TraceReader;
pub use stream::{AccessStream, Sample, Selection};
pub use synth::{Law, Skew, SynthConfig, SynthTable, synthesize};
pub(crate) use synth::{Scatter, Zipf, below, unit};
pub use writer::TraceWriter;
