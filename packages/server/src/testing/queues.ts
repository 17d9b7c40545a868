/** Queues, batches and their options, for tests of the queue core. */
import { QUEUE_OPTION_DEFAULTS, type QueueOptions } from '@sluice/protocol'
import { Admission } from '../queue/admission.js'
import type { Traits } from '../queue/chunk.js'
import type { QueueDefinition } from '../queue/definition.js'
import type { Queue } from '../queue/queue.js'

export function definition(options: Partial<QueueOptions> = {}): QueueDefinition {
  const all = { ...QUEUE_OPTION_DEFAULTS, ...options }
  return { name: 'q', options: all, createdAtMs: 0, paused: false, idsFrom: 0 }
}

/** Options of the messages of a batch. Some have a priority, some a delay, and some a time to live. */
export function traitsOf(seed: number, count: number, now: number): Traits {
  const traits = {
    priorities: new Uint8Array(count),
    dues: new Float64Array(count),
    expiries: new Float64Array(count),
    isKeyed: false,
    keys: new Uint32Array(0),
    hasIds: false,
    replaces: new Uint8Array(count),
    ids: new Uint32Array(0),
    sizes: undefined,
  }
  for (let i = 0; i < count; i++) {
    traits.priorities[i] = [0, 0, 3, 31][(seed + i * 7) % 4]!
    if ((seed + i) % 5 === 0) traits.dues[i] = now + 1 + (i % 40)
    if ((seed + i * 3) % 6 === 0) traits.expiries[i] = (traits.dues[i] || now) + 5 + (i % 70)
  }
  return traits
}

/** Makes room for a batch of `count` messages. */
export function makeRoom(queue: Queue, count: number, nowMs: number): void {
  const admission = new Admission(queue, nowMs)
  admission.look(count, 0, undefined)
  admission.makeRoom(nowMs, Infinity)
}
