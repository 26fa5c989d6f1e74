/* SPDX-License-Identifier: GPL-2.0-only
 *
 * A fio engine that drives an emulated device of tiermem. See README.md for its licence.
 */
#include "fio.h"
#include "optgroup.h"

#include "tiermem.h"

#if FIO_IOOPS_VERSION < 26 || FIO_IOOPS_VERSION > 36
#error "this engine was written for fio 3.33 (engine interface 31) and compiled with interfaces 26 to 36 only"
#endif

/* Tells which fio the engine was built for: `strings tiermem_fio.so | grep tiermem_fio:`. */
#define TEXT(value) #value
#define NUMBER(value) TEXT(value)
const char tiermem_fio_built_for[] =
	"tiermem_fio: built for fio " TIERMEM_FIO_VERSION ", engine interface " NUMBER(FIO_IOOPS_VERSION);

/* The first member must not be an option: fio takes offset 0 for none. */
struct engine_options {
	void *td;
	char *device;
	unsigned long long seed;
	unsigned int zero_latency;
	unsigned long long transport_ns;
};

struct engine_state {
	struct tiermem_device *device;
	struct io_u **in_flight; /* by tag */
	uint32_t *free_tags;
	uint32_t *due;
	unsigned int free_count;
	unsigned int depth;
};

static struct fio_option engine_option_table[] = {
	{
		.name = "tiermem_device",
		.lname = "device file",
		.type = FIO_OPT_STR_STORE,
		.off1 = offsetof(struct engine_options, device),
		.help = "Device file of tiermem",
		.category = FIO_OPT_C_ENGINE,
		.group = FIO_OPT_G_INVALID,
	},
	{
		.name = "tiermem_seed",
		.lname = "seed",
		.type = FIO_OPT_ULL,
		.off1 = offsetof(struct engine_options, seed),
		.def = "1",
		.help = "Seed of the latency draws",
		.category = FIO_OPT_C_ENGINE,
		.group = FIO_OPT_G_INVALID,
	},
	{
		.name = "tiermem_zero_latency",
		.lname = "zero latency",
		.type = FIO_OPT_BOOL,
		.off1 = offsetof(struct engine_options, zero_latency),
		.def = "0",
		.help = "Complete requests at once, to measure fio itself",
		.category = FIO_OPT_C_ENGINE,
		.group = FIO_OPT_G_INVALID,
	},
	{
		.name = "tiermem_transport_ns",
		.lname = "transport",
		.type = FIO_OPT_ULL,
		.off1 = offsetof(struct engine_options, transport_ns),
		.def = "0",
		.help = "A request counts as submitted so many nanoseconds earlier",
		.category = FIO_OPT_C_ENGINE,
		.group = FIO_OPT_G_INVALID,
	},
	{
		.name = NULL,
	},
};

/* Once per job, before fio asks for the size of the file: there is one, and it is the device. */
static int engine_setup(struct thread_data *td)
{
	struct fio_file *file;

	if (td->o.size == 0 || td->o.size == -1ULL) {
		log_err("tiermem: give --size, the size of the device\n");
		return 1;
	}
	if (!td->files_index) {
		add_file(td, "tiermem", 0, 0);
		td->o.nr_files = td->o.nr_files ? td->o.nr_files : 1;
		td->o.open_files++;
	}
	file = td->files[0];
	file->filetype = FIO_TYPE_BLOCK;
	file->real_file_size = td->o.size;
	fio_file_set_size_known(file);
	return 0;
}

static int engine_init(struct thread_data *td)
{
	const struct engine_options *options = td->eo;
	struct engine_state *state;
	char message[1024];
	unsigned int tag;

	if (tiermem_abi_version() != TIERMEM_ABI_VERSION) {
		log_err("tiermem: the library has ABI version %u, this engine was built for %u\n",
			tiermem_abi_version(), TIERMEM_ABI_VERSION);
		return 1;
	}
	if (!options->device) {
		log_err("tiermem: give --tiermem_device, a device file, after --ioengine\n");
		return 1;
	}
	state = calloc(1, sizeof(*state));
	if (!state)
		return 1;
	td->io_ops_data = state;
	state->depth = td->o.iodepth;
	state->in_flight = calloc(state->depth, sizeof(*state->in_flight));
	state->free_tags = calloc(state->depth, sizeof(*state->free_tags));
	state->due = calloc(state->depth, sizeof(*state->due));
	if (!state->in_flight || !state->free_tags || !state->due)
		return 1;
	for (tag = 0; tag < state->depth; tag++)
		state->free_tags[state->free_count++] = tag;
	state->device = tiermem_device_open(options->device, td->o.size, options->seed, options->zero_latency,
					    options->transport_ns, message, sizeof(message));
	if (!state->device) {
		log_err("tiermem: %s\n", message);
		return 1;
	}
	return 0;
}

static enum fio_q_status engine_queue(struct thread_data *td, struct io_u *io_u)
{
	struct engine_state *state = td->io_ops_data;
	uint32_t tag;
	int code;

	fio_ro_check(td, io_u);
	if (io_u->ddir == DDIR_TRIM || ddir_sync(io_u->ddir)) {
		/* What was acknowledged is safe on the devices that are modelled, and trimming takes no time of the model. */
		code = io_u->ddir == DDIR_TRIM ?
			       tiermem_device_discard(state->device, io_u->offset, io_u->xfer_buflen) : 0;
		io_u->error = -code;
		return FIO_Q_COMPLETED;
	}
	if (!state->free_count)
		return FIO_Q_BUSY;
	tag = state->free_tags[state->free_count - 1];
	if (io_u->ddir == DDIR_READ)
		code = tiermem_device_read(state->device, tag, io_u->offset, io_u->xfer_buf, io_u->xfer_buflen);
	else
		code = tiermem_device_write(state->device, tag, io_u->offset, io_u->xfer_buf, io_u->xfer_buflen);
	if (code) {
		io_u->error = -code;
		return FIO_Q_COMPLETED;
	}
	state->free_count--;
	state->in_flight[tag] = io_u;
	return FIO_Q_QUEUED;
}

/* Spins: what a sleep would add is as long as a request of a fast device takes. */
static int engine_getevents(struct thread_data *td, unsigned int min, unsigned int max, const struct timespec *timeout)
{
	struct engine_state *state = td->io_ops_data;
	unsigned int count = 0;
	struct timespec begin;

	if (max > state->depth)
		max = state->depth;
	if (timeout)
		fio_gettime(&begin, NULL);
	for (;;) {
		count += tiermem_device_poll(state->device, state->due + count, max - count);
		if (count >= min || td->terminate)
			return count;
		if (timeout && ntime_since_now(&begin) > timeout->tv_sec * 1000000000ULL + timeout->tv_nsec)
			return count;
		nop;
	}
}

static struct io_u *engine_event(struct thread_data *td, int event)
{
	struct engine_state *state = td->io_ops_data;
	uint32_t tag = state->due[event];

	state->free_tags[state->free_count++] = tag;
	return state->in_flight[tag];
}

static void engine_cleanup(struct thread_data *td)
{
	struct engine_state *state = td->io_ops_data;

	if (!state)
		return;
	tiermem_device_close(state->device);
	free(state->in_flight);
	free(state->free_tags);
	free(state->due);
	free(state);
	td->io_ops_data = NULL;
}

static int engine_file(struct thread_data *td, struct fio_file *file)
{
	return 0;
}

struct ioengine_ops ioengine = {
	.name = "tiermem",
	.version = FIO_IOOPS_VERSION,
	.flags = FIO_RAWIO | FIO_NOEXTEND | FIO_NODISKUTIL,
	.setup = engine_setup,
	.init = engine_init,
	.queue = engine_queue,
	.getevents = engine_getevents,
	.event = engine_event,
	.cleanup = engine_cleanup,
	.open_file = engine_file,
	.close_file = engine_file,
	.invalidate = engine_file,
	.options = engine_option_table,
	.option_struct_size = sizeof(struct engine_options),
};
