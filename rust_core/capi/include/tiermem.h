/* SPDX-License-Identifier: Apache-2.0
 *
 * The C ABI of an emulated block device, in real time. Bytes are in memory and move inside the call that submits;
 * the model of the device says when a request is due. A device belongs to one thread.
 */
#ifndef TIERMEM_H
#define TIERMEM_H

#include <stddef.h>
#include <stdint.h>

#define TIERMEM_ABI_VERSION 1

struct tiermem_device;

/* TIERMEM_ABI_VERSION of the library; refuse to run with another one. */
uint32_t tiermem_abi_version(void);

/* Opens the device that a device file describes, with the first capacity_bytes of it in memory.
 * zero_latency: every request is due at once, to measure the client. transport_ns: a request counts as
 * submitted so long before the call. NULL on failure, with a sentence in message. */
struct tiermem_device *tiermem_device_open(const char *path, uint64_t capacity_bytes, uint64_t seed, int zero_latency,
					   uint64_t transport_ns, char *message, size_t message_bytes);

/* Submits a request; its tag comes back from tiermem_device_poll when it is due. 0, or a negative errno, and then the
 * tag does not come back. The memory is not used after the call. */
int tiermem_device_read(struct tiermem_device *device, uint32_t tag, uint64_t offset, void *memory, size_t nbytes);
int tiermem_device_write(struct tiermem_device *device, uint32_t tag, uint64_t offset, const void *memory,
			 size_t nbytes);

/* Makes a range read as zeros, at once. 0, or a negative errno. */
int tiermem_device_discard(struct tiermem_device *device, uint64_t offset, uint64_t nbytes);

/* Writes the tags of requests that are due, at most tags_max, and gives their number; never waits. */
size_t tiermem_device_poll(struct tiermem_device *device, uint32_t *tags, size_t tags_max);

void tiermem_device_close(struct tiermem_device *device);

#endif
