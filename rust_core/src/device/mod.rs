//! How long it takes and what can go wrong: device specifications, the timing model, faults, wear,
//! and a single emulated device.

mod curve;
mod emulated;
mod event_list;
mod fault;
mod lateness;
mod live;
mod load;
mod media;
mod quantile;
mod queue;
mod spec;
mod timing;
mod traffic;
mod usage;
mod validate;
mod workload;
mod write_buffer;

pub use curve::{CurveFamily, WorkingPoint};
pub use emulated::{DeviceConfig, EmulatedDevice};
pub use fault::{FaultSpec, Storms};
pub use lateness::{Debt, Lateness};
pub use live::{LiveConfig, LiveDevice};
pub use load::{Arrival, Pattern, Workload};
pub use quantile::QuantileTable;
pub use spec::{
    BackgroundSpec, CostSpec, CurveSpec, DeviceKind, DeviceSpec, DeviceState, HostSpec, PowerSpec, ReadSpec,
    SourceSpec, WearSpec, WriteSpec,
};
pub use timing::{BatchHandle, Schedule, TimedDevice, TransferRecord};
pub use traffic::{DeviceSnapshot, Operation, Request};
pub use usage::{DeviceStats, Energy, StageTimes, Wear};
pub use workload::{KeepGoing, PointResult, run_virtual, run_wall};
