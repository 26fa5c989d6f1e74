//! Criterion benches of the core; see `benches/`. `cargo bench -p tiermem-benches`, or with
//! `-- --test` once through each at small size, as the checks do.
