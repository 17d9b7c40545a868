/**
 * The crash matrix of atomic steps: each of 500 steps (1,300 in the long mode) acknowledges an input and publishes its
 * outputs to one or two queues. The broker loses power at every write to the log, and at every sector within each
 * write. After each loss the client reconnects, sends every unanswered step again, and repeats refused steps as new
 * ones. No input may be acknowledged without its outputs, and no output may be published without the ack, or twice.
 */
import {
  SluiceError,
  decodeAtomic,
  encodeAtomic,
  queueName,
  type Placed,
  type QueueInfo,
} from '@sluice/protocol'
import { expect, test } from 'vitest'
import { Broker } from '../../packages/server/src/broker/broker.js'
import type { AtomicStep } from '../../packages/server/src/broker/commands.js'
import { FileLog } from '../../packages/server/src/log/file-log.js'
import type { Disk, DiskFile } from '../../packages/server/src/log/log.js'
import type { Consumer, Subscription } from '../../packages/server/src/queue/index.js'
import { ONE_SEED, runs, TIMEOUT_MS } from '../amount.js'
import { countCrashPoints } from '../crash-points.js'
import { buildBatch, nameOf, splitRecords } from './attempts.js'
import { Chance } from './chance.js'
import { SECTOR_BYTES, SimulatedDisk } from './disk.js'

const STEPS = runs(500, 1_300)
const SEGMENT_BYTES = 96 * 1024
const CHECKPOINT_BYTES = 48 * 1024
/** Every image whose number is a multiple of this is drained to its last message. */
const DRAINED_EVERY = 40
const IN = queueName('in')
const OUT = [queueName('out-a'), queueName('out-b')] as const
const IDENTITY = 'cd'.repeat(16)
const FEEDER = 'ab'.repeat(16)
const START_MS = 1_700_000_000_000

/** Indexes of the output queues that receive an output for this input. */
function outputsOf(input: number): readonly (0 | 1)[] {
  return ([[0], [1], [0, 1]] as const)[input % 3]!
}

/** Number of outputs in queue `out` of the first `inputs` inputs. */
function outputsBefore(inputs: number, out: 0 | 1): number {
  let count = 0
  for (let input = 0; input < inputs; input++) if (outputsOf(input).includes(out)) count++
  return count
}

/** A write to the log that is about to happen, and a copy of the disk before it. */
interface Caught {
  readonly before: SimulatedDisk
  readonly name: string
  readonly position: number
  readonly bytes: Uint8Array
}

/** A disk that passes on every operation and reports the writes to the log. */
function watched(disk: SimulatedDisk, caught: (write: Caught) => void): Disk {
  return {
    list: () => disk.list(),
    rename: (from, to) => disk.rename(from, to),
    remove: (name) => disk.remove(name),
    syncDirectory: () => disk.syncDirectory(),
    space: () => disk.space(),
    open: async (name, options) => {
      const file = await disk.open(name, options)
      if (options.durable !== true) return file
      const other: DiskFile = {
        get bytes() {
          return file.bytes
        },
        read: (position, length, into) => file.read(position, length, into),
        write: (position, bytes) => {
          caught({ before: disk.clone(), name, position, bytes: bytes.slice() })
          return file.write(position, bytes)
        },
        sync: () => file.sync(),
        close: () => file.close(),
      }
      return other
    },
  }
}

interface Held {
  readonly input: number
  readonly subscription: Subscription
  readonly tag: number
}

/** A step that its client keeps until the broker answers. */
interface Sent {
  readonly input: number
  readonly number: number
  readonly payload: Uint8Array
}

/** A broker with one client on a disk whose operations complete at once. */
class Bench {
  broker!: Broker
  readonly held: Held[] = []
  readonly #turns: (() => void)[] = []
  #nowMs = START_MS
  #fatal: Error | undefined

  async open(disk: Disk): Promise<this> {
    this.broker = await Broker.open({
      log: new FileLog({
        disk,
        segmentBytes: SEGMENT_BYTES,
        lowFreeBytes: 0,
        now: () => this.#nowMs,
        random32: () => 7,
        sleep: () => new Promise(() => {}),
      }),
      now: () => this.#nowMs,
      random: () => 0.5,
      defer: (turn) => this.#turns.push(turn),
      onFatal: (error) => (this.#fatal = error as Error),
      messageBytesMax: 1024,
      checkpointBytes: CHECKPOINT_BYTES,
    })
    return this
  }

  /** Runs turns until no turn is left. */
  async rest(): Promise<void> {
    for (let quiet = 0; quiet < 40; quiet++) {
      for (let turn = this.#turns.shift(); turn !== undefined; turn = this.#turns.shift()) {
        turn()
        quiet = 0
      }
      await Promise.resolve()
    }
    if (this.#fatal !== undefined) throw this.#fatal
  }

  pass(ms: number): void {
    this.#nowMs += ms
    this.broker.turn.tick()
  }

  async feed(inputs: number): Promise<void> {
    const producer = this.broker.producers.attach(FEEDER, 0)
    const perBatch = 25
    for (let from = 0; from < inputs; from += perBatch) {
      this.broker.turn.begin()
      const drafts = Array.from({ length: perBatch }, (_, i) => ({ name: `in:${from + i}`, padding: 0 }))
      const { batch } = buildBatch(from / perBatch + 1, drafts, false)
      this.broker.intake.publish(producer, IN, batch, 0, batch.length, 0)
      await this.rest()
    }
  }

  /** Subscribes to the queue; `each` receives every delivered record. */
  consume(name: typeof IN, messages: number, each: (held: Held, record: Uint8Array) => void): Subscription {
    const consumer: Consumer = {
      label: '',
      address: '',
      isReady: true,
      deliver: (subscription, { run, firstTag, bytes, start, end }) => {
        for (const [i, record] of splitRecords(bytes, start, end).entries())
          each({ input: run.offset + i, subscription, tag: (firstTag + i) >>> 0 }, record)
      },
      lost: () => {},
      drained: () => {},
      ended: (_subscription, error) => (this.#fatal ??= error),
    }
    this.broker.turn.begin()
    return this.broker.leases.subscribe({ queue: name, messages, bytes: 0xffff_ffff }, 1, consumer)
  }

  /** Sends a step. `unanswered`: distance from its number to the lowest unanswered one. @throws SluiceError */
  send({ number, payload }: Sent, held: Held | undefined, unanswered: number): readonly Placed[] {
    const { crc, acks, batches } = decodeAtomic(payload, 0, payload.length)
    const step: AtomicStep = {
      number,
      crc,
      acks: acks.map(({ firstTag, count }) => ({ subscription: held?.subscription, firstTag, count })),
      batches,
    }
    this.broker.turn.begin()
    const producer = this.broker.producers.attach(IDENTITY, 0)
    return this.broker.intake.atomic(producer, step, unanswered)
  }

  info(name: typeof IN): QueueInfo {
    return this.broker.catalog.info(name)
  }
}

function stepFor({ input, subscription, tag }: Held, number: number): Sent {
  const batches = outputsOf(input).map((out) => {
    const { batch } = buildBatch(number, [{ name: `out:${input}:${out}`, padding: input % 90 }], false)
    return { queue: OUT[out], bytes: batch, at: 0, end: batch.length }
  })
  const acks = [{ channel: 1, subscriptionId: subscription.id, firstTag: tag, count: 1 }]
  return { input, number, payload: encodeAtomic(number, acks, batches) }
}

test(
  'a step is all or nothing at every sector of every write, and takes effect once',
  async (context) => {
    const chance = new Chance(ONE_SEED ?? 1)
    const looked = { writes: 0, images: 0, torn: 0, done: 0, undone: 0, redone: 0, drained: 0 }
    const wrong = { ackedOnly: 0, publishedOnly: 0, twice: 0, lost: 0, other: 0 }
    const disk = new SimulatedDisk()
    let caught: Caught[] = []
    const bench = await new Bench().open(watched(disk, (write) => caught.push(write)))
    bench.broker.catalog.ensure({ name: IN, options: {}, update: false })
    // The time to live adds a fact before each batch for this queue.
    bench.broker.catalog.ensure({ name: OUT[0], options: { ttlMs: 3_600_000 }, update: false })
    bench.broker.catalog.ensure({ name: OUT[1], options: {}, update: false })
    await bench.feed(STEPS)
    const subscription = bench.consume(IN, 8, (held) => bench.held.push(held))
    await bench.rest()
    caught = []

    /** Checks one image, in which only the first `sectors` sectors of the write are on the disk. */
    const look = async (
      write: Caught,
      sectors: number,
      done: number,
      sent: readonly Sent[],
    ): Promise<void> => {
      looked.images++
      const isWhole = sectors * SECTOR_BYTES >= write.bytes.length
      if (sectors > 0 && !isWhole) looked.torn++
      const image = write.before.crash(chance.random)
      image.damage(write.name, write.position, write.bytes.subarray(0, sectors * SECTOR_BYTES))
      const after = await new Bench().open(image)
      const acked = after.info(IN).acked
      // An answered step is durable; an unanswered step has all of its effects or none.
      if (acked < done || acked > done + sent.length) wrong.lost++
      for (const out of [0, 1] as const) {
        const { published } = after.info(OUT[out])
        const must = outputsBefore(acked, out)
        if (published < must) wrong.ackedOnly++
        if (published > must) wrong.publishedOnly++
      }
      // The client reconnects and sends all its unanswered steps again.
      const last = sent.at(-1)!
      let number = last.number
      const refused = new Map<number, Sent>()
      for (const [unanswered, one] of sent.entries()) {
        const wasDone = one.input < acked
        try {
          const places = after.send(one, undefined, unanswered)
          const must = outputsOf(one.input).map((out) => outputsBefore(one.input, out))
          if (!wasDone || places.map(({ baseOffset }) => baseOffset).join() !== must.join()) wrong.other++
          looked.done++
        } catch (error) {
          if (!(error instanceof SluiceError) || error.code !== 'LEASE_LOST') throw error
          if (wasDone) wrong.other++
          refused.set(one.input, one)
          looked.undone++
        }
      }
      if (refused.size > 0) {
        const handed: Held[] = []
        const redo = after.consume(IN, refused.size, (held) => handed.push(held))
        await after.rest()
        for (const held of handed) {
          if (!refused.delete(held.input)) wrong.other++
          after.send(stepFor(held, ++number), held, 0)
          looked.redone++
        }
        if (refused.size > 0) wrong.lost++
        after.broker.leases.unsubscribe(redo, 'normal')
        await after.rest()
      }
      const total = done + sent.length
      if (after.info(IN).acked !== total) wrong.lost++
      for (const out of [0, 1] as const) {
        const excess = after.info(OUT[out]).published - outputsBefore(total, out)
        if (excess > 0) wrong.twice++
        if (excess < 0) wrong.lost++
      }
      if (looked.images % DRAINED_EVERY === 0) await drain(after, total)
    }

    /** Checks that every output exists exactly once. */
    const drain = async (after: Bench, total: number): Promise<void> => {
      looked.drained++
      for (const out of [0, 1] as const) {
        const names = new Set<string>()
        after.consume(OUT[out], 65_535, (_held, record) => {
          const name = nameOf(record)
          if (names.has(name)) wrong.twice++
          names.add(name)
        })
        await after.rest()
        for (let input = 0; input < total; input++)
          if (outputsOf(input).includes(out) && !names.delete(`out:${input}:${out}`)) wrong.lost++
        if (names.size > 0) wrong.other++
      }
      after.broker.audit()
    }

    let number = 0
    for (let done = 0; done < STEPS;) {
      // Steps of one turn are in one entry, steps of different turns in different entries.
      const count = Math.min(chance.int(1, 3), bench.held.length, STEPS - done)
      const sent = bench.held.splice(0, count).map((held, unanswered) => {
        const one = stepFor(held, ++number)
        bench.send(one, held, unanswered)
        return one
      })
      expect(sent.length).toBeGreaterThan(0)
      await bench.rest()
      bench.pass(chance.int(0, 30))
      await bench.rest()
      const writes = caught
      caught = []
      for (const write of writes) {
        looked.writes++
        const sectors = Math.ceil(write.bytes.length / SECTOR_BYTES)
        for (let kept = 0; kept <= sectors; kept++) await look(write, kept, done, sent)
      }
      done += sent.length
      caught = []
    }
    await drain(bench, STEPS)
    countCrashPoints(context, looked.images)
    expect(wrong).toEqual({ ackedOnly: 0, publishedOnly: 0, twice: 0, lost: 0, other: 0 })
    expect(bench.info(IN)).toMatchObject({ acked: STEPS, ready: 0, leased: 0 })
    expect(subscription.unsettled).toBe(0)
    expect(looked.writes).toBeGreaterThan(STEPS / 3)
    expect(looked.images).toBeGreaterThan(1.5 * STEPS)
    expect(looked.torn).toBeGreaterThan(STEPS / 4)
    expect(looked.done).toBeGreaterThan(STEPS)
    expect(looked.undone).toBeGreaterThan(STEPS)
    expect(looked.redone).toBe(looked.undone)
    expect(looked.drained).toBeGreaterThan(STEPS / 26)
  },
  TIMEOUT_MS,
)
