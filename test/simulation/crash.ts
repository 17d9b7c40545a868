/**
 * Crash points. At a random share of a run's disk uses, `look` takes one of the disk images that a power loss or a kill
 * could leave at that point. A new broker recovers from the image, and its state is compared with the log. The run itself
 * is not affected.
 */
import { OUTCOME, SluiceError, decodeAtomic, type QueueName } from '@sluice/protocol'
import { Broker } from '../../packages/server/src/broker/broker.js'
import type { Producer as BrokerProducer } from '../../packages/server/src/state/producers.js'
import type { LogBounds } from '../../packages/server/src/log/log.js'
import type { Consumer, Subscription } from '../../packages/server/src/queue/index.js'
import { BoundedLog } from './bounded-log.js'
import { Chance } from './chance.js'
import type { SimulatedDisk } from './disk.js'
import type { LedgerState } from './ledger.js'
import { Model } from './model.js'
import { compareRecovered } from './recovery.js'
import { Taps } from './taps.js'
import { Violation } from './trace.js'
import type { Sender, World } from './world.js'

/** Counts of the images and effects that were checked. */
export interface CrashCounts {
  images: number
  /**
   * Number of images with the whole entry whose write was under way (`withUnfinished`), with a part of it that recovery
   * cut off (`torn`), and with an orderly stop at the end of the log (`afterStop`).
   */
  withUnfinished: number
  torn: number
  afterStop: number
  fromCheckpoint: number
  messages: number
  batches: number
  keys: number
  ids: number
  dead: number
  /** Number of images that were recovered a second time, after a crash during the first recovery or after it. */
  again: number
  interrupted: number
  /** Number of images to which batches were sent again. */
  resent: number
  steps: number
  /** Number of images that were drained. */
  drained: number
  drainedMessages: number
  /** Number of claims of stale leases: another consumer has received the message since. */
  staleClaims: number
}

export function noCrashes(): CrashCounts {
  return {
    images: 0,
    withUnfinished: 0,
    torn: 0,
    afterStop: 0,
    fromCheckpoint: 0,
    messages: 0,
    batches: 0,
    keys: 0,
    ids: 0,
    dead: 0,
    again: 0,
    interrupted: 0,
    resent: 0,
    steps: 0,
    drained: 0,
    drainedMessages: 0,
    staleClaims: 0,
  }
}

/** Checks the behaviour of a recovered broker. */
interface Judge {
  readonly model: Model
  wrong: Error | undefined
}

interface Recovered {
  readonly broker: Broker
  readonly log: BoundedLog
  readonly bounds: LogBounds
  readonly turns: (() => void)[]
  readonly taps: Taps
}

const IDLE: Consumer = {
  label: 'idle',
  address: 'idle',
  isReady: true,
  deliver: () => {},
  lost: () => {},
  drained: () => {},
  ended: () => {},
}

/** Credit for every message of a queue. */
const ALL = { messages: 65_535, bytes: 0xffff_ffff }

const AGAIN_SHARE = 0.1
const INTERRUPTED_SHARE = 0.06
const USED_SHARE = 0.06
/**
 * Upper bound on the number of messages in a queue of these worlds. If there are more deliveries, some message is
 * repeated endlessly.
 */
const DRAINED_MAX = 20_000

export class CrashPoints {
  readonly counts: CrashCounts
  readonly #chance: Chance
  readonly #share: number

  /** Checks this `share` of the disk uses. */
  constructor(seed: number, counts: CrashCounts, share: number) {
    this.#chance = new Chance(seed ^ 0x0c4a_5e)
    this.counts = counts
    this.#share = share
  }

  async look(world: World): Promise<void> {
    const chance = this.#chance
    if (!chance.hit(this.#share)) return
    const image = chance.hit(0.85) ? world.disk.crash(chance.random) : world.disk.kill(chance.random)
    try {
      await this.#check(world, image)
    } catch (error) {
      if (error instanceof Error) error.message += ` (in crash image ${this.counts.images} of this seed)`
      throw error
    }
  }

  async #check(world: World, image: SimulatedDisk): Promise<void> {
    const { counts } = this
    const chance = this.#chance
    const interrupted = chance.hit(INTERRUPTED_SHARE)
      ? image.clone({ mode: 'queued', random: chance.random })
      : undefined
    counts.images++
    const recovered = await this.#recover(world, image)
    const { bounds } = recovered
    const state = world.ledger.allows(bounds.nextLsn - 1)
    const afterCrash = !state.closed
    if (bounds.nextLsn - 1 > world.ledger.durable.lsn) counts.withUnfinished++
    if (bounds.cutBytes > 0) counts.torn++
    if (!afterCrash) counts.afterStop++
    if (bounds.checkpoint !== undefined) counts.fromCheckpoint++
    this.#compare(world, recovered, state, afterCrash)
    if (interrupted !== undefined) await this.#interrupt(world, interrupted)
    if (chance.hit(AGAIN_SHARE)) {
      // Invariant 17: the recovery is complete and durable; recovering from that state gives the same state.
      counts.again++
      const again = await this.#recover(world, image.crash(chance.random))
      if (again.bounds.nextLsn !== bounds.nextLsn + 1)
        throw new Violation(
          17,
          `after recovery the log ends with entry ${again.bounds.nextLsn - 1}, not ${bounds.nextLsn}`,
        )
      this.#compare(world, again, state, true)
    }
    this.#claimStale(world, recovered)
    if (chance.hit(USED_SHARE)) {
      const judge = this.#judge(world, recovered, state, afterCrash)
      this.#resend(world, recovered, state)
      await this.#drain(recovered, judge)
      if (judge.wrong !== undefined) throw judge.wrong
      recovered.broker.audit()
    }
  }

  /** Invariant 7: no lease is granted again after another consumer has received the message. */
  #claimStale({ model }: World, { broker }: Recovered): void {
    broker.turn.begin()
    for (const { id, name } of model.state.queues.values()) {
      const claims = model.consuming.superseded.filter(({ queueNumber }) => queueNumber === id)
      if (claims.length === 0) continue
      let subscription: Subscription
      try {
        subscription = broker.leases.subscribe({ queue: name as QueueName, ...ALL }, 1, IDLE)
      } catch (error) {
        // The message does not exist yet, or no longer exists.
        if (error instanceof SluiceError) continue
        throw error
      }
      this.counts.staleClaims += claims.length
      const [granted] = broker.leases.claim(subscription, claims)
      if (granted !== undefined) {
        const { offset, subscriptionId, tag } = claims[granted.index]!
        throw new Violation(
          7,
          `the lease ${subscriptionId}:${tag} on offset ${offset} of ${name} is granted again after another consumer had it`,
        )
      }
      broker.leases.unsubscribe(subscription, 'normal')
    }
  }

  #compare(world: World, { broker, log }: Recovered, state: LedgerState, afterCrash: boolean): void {
    const compared = compareRecovered(broker, log, state, afterCrash, world.latestMs, (identity) =>
      world.lowestUnanswered(identity),
    )
    broker.audit()
    for (const name of ['messages', 'batches', 'keys', 'ids', 'dead'] as const)
      this.counts[name] += compared[name]
  }

  /** Invariant 17: the recovery itself crashes at some point, and the next recovery loses nothing. */
  async #interrupt(world: World, disk: SimulatedDisk): Promise<void> {
    const chance = this.#chance
    this.counts.interrupted++
    const opening = this.#begin(world, disk)
    let reported: LogBounds | undefined
    void opening.bounds.then((bounds) => (reported = bounds))
    for (let steps = chance.skewed(60); steps > 0 && disk.queued > 0; steps--) {
      disk.step()
      await new Promise((resolve) => setImmediate(resolve))
    }
    const recovered = await this.#recover(world, disk.crash(chance.random))
    const last = recovered.bounds.nextLsn - 1
    const ledger = world.ledger
    // The log ends with entry `base`, or with the next entry, which is the boot mark of the interrupted recovery.
    const base = reported === undefined ? Math.min(last, ledger.written.lsn) : reported.nextLsn - 1
    if (last < base || last > base + 1)
      throw new Violation(
        17,
        `recovery was interrupted after entry ${base}; the next recovery finds entry ${last}`,
      )
    const state = ledger.allows(base)
    this.#compare(world, recovered, state, last > base || !state.closed)
  }

  #begin(
    world: World,
    disk: SimulatedDisk,
  ): {
    readonly broker: Promise<Broker>
    readonly log: BoundedLog
    readonly bounds: Promise<LogBounds>
    readonly turns: (() => void)[]
    readonly taps: Taps
  } {
    const options = {
      disk,
      segmentBytes: world.segmentBytes,
      lowFreeBytes: 0,
      now: () => world.brokerMs,
      random32: () => 0x5eed_0000 + world.seed,
      sleep: () => new Promise<void>(() => {}),
    }
    const log = new BoundedLog(options, world.entryBytesMax)
    let setBounds: (bounds: LogBounds) => void
    const bounds = new Promise<LogBounds>((resolve) => (setBounds = resolve))
    const open = log.open.bind(log)
    log.open = async () => {
      const found = await open()
      setBounds(found)
      return found
    }
    const turns: (() => void)[] = []
    const taps = new Taps()
    const broker = Broker.open({
      log,
      now: () => world.brokerMs,
      random: () => 0.5,
      defer: (turn) => turns.push(turn),
      onFatal: () => {},
      messageBytesMax: world.messageBytesMax,
      excessMax: world.excessMax,
      blocks: { blockBytes: 4096, recentBytes: 64 * 1024, coldBytes: 256 * 1024, readAheadBytes: 16 * 1024 },
      checkpointBytes: 1 << 30,
      observer: taps,
    })
    // The promise of an interrupted recovery never settles.
    broker.catch(() => {})
    return { broker, log, bounds, turns, taps }
  }

  async #recover(world: World, disk: SimulatedDisk): Promise<Recovered> {
    const opening = this.#begin(world, disk)
    return {
      broker: await opening.broker,
      log: opening.log,
      bounds: await opening.bounds,
      turns: opening.turns,
      taps: opening.taps,
    }
  }

  /** Builds the checks of what the recovered broker does from now on. */
  #judge(world: World, { broker, taps }: Recovered, state: LedgerState, afterCrash: boolean): Judge {
    const model = new Model({
      dueMs: (queueId, offset) => {
        const queue = broker.catalog.queue(model.state.queues.get(queueId)!.name)
        const chunk = queue.chunkAt(offset)
        if (chunk === undefined || chunk.isDead(offset - chunk.base)) return undefined
        return chunk.dueAt(offset - chunk.base) || undefined
      },
      hasMoreExpired: (name) => broker.catalog.queue(name).hasMoreExpired,
      diskMayBeLow: () => false,
      copied: () => {},
      stepBytesMax: world.entryBytesMax / 4,
      excessMax: world.excessMax,
    })
    model.recover(state, afterCrash, broker.turn.nowMs, world.latestMs)
    const judge: Judge = { model, wrong: undefined }
    taps.attach(broker, {
      model,
      attempts: world.attempts,
      durable: state,
      guard: (work) => {
        if (judge.wrong !== undefined) return
        try {
          work()
        } catch (error) {
          judge.wrong = error as Error
        }
      },
      removed: () => {},
    })
    return judge
  }

  /**
   * Invariants 3 and 9: a batch that clients would send again is answered as before, accepted now, or refused without an
   * effect.
   */
  #resend(world: World, { broker }: Recovered, state: LedgerState): void {
    const send = (sender: Sender, work: (producer: BrokerProducer, lowest: number) => void): void => {
      const known = state.producers.get(sender.identityText)?.highest ?? 0
      const producer = broker.producers.attach(sender.identityText, known)
      this.counts.resent++
      try {
        work(producer, sender.lowestUnanswered)
      } catch (error) {
        // The model checks whether the refusal was allowed.
        if (!(error instanceof SluiceError) || error.code === 'UNKNOWN_OUTCOME') throw error
      }
    }
    for (const sender of world.producers) {
      for (const { queue, batch, number } of sender.unanswered()) {
        send(sender, (producer, lowest) => {
          broker.intake.publish(producer, queue, batch, 0, batch.length, number - lowest)
        })
      }
    }
    for (const sender of world.consumers) {
      for (const { number, payload } of sender.unanswered()) {
        this.counts.steps++
        send(sender, (producer, lowest) => {
          const { crc, acks, batches } = decodeAtomic(payload, 0, payload.length)
          const stale = acks.map(({ firstTag, count }) => ({ subscription: undefined, firstTag, count }))
          broker.intake.atomic(producer, { number, crc, acks: stale, batches }, number - lowest)
        })
      }
    }
  }

  /**
   * Invariants 1, 2, 12, 13 and 22: every message that is neither dead nor scheduled is delivered once, in order, with
   * unchanged bytes, and marked as redelivered where it must be.
   */
  async #drain({ broker, turns }: Recovered, judge: Judge): Promise<void> {
    this.counts.drained++
    const { model } = judge
    let wrong: Error | undefined
    for (const { name } of [...model.state.queues.values()]) {
      const held: number[] = []
      let delivered = 0
      const consumer: Consumer = {
        label: 'drain',
        address: 'drain',
        isReady: true,
        deliver: (_subscription, { firstTag, count }) => {
          this.counts.drainedMessages += count
          delivered += count
          for (let i = 0; i < count; i++) held.push((firstTag + i) >>> 0)
        },
        lost: () => {},
        drained: () => {},
        ended: (_subscription, error) => {
          wrong ??= new Violation(2, `${name} cannot be drained: ${error.message}`)
        },
      }
      broker.turn.begin()
      broker.catalog.resume(name as QueueName)
      const subscription = broker.leases.subscribe({ queue: name as QueueName, ...ALL }, 1, consumer)
      for (let quiet = 0; quiet < 3;) {
        const turn = turns.shift()
        turn?.()
        await new Promise((resolve) => setImmediate(resolve))
        quiet = turn === undefined && held.length === 0 ? quiet + 1 : 0
        if (delivered > DRAINED_MAX)
          throw judge.wrong ?? new Violation(8, `${name} delivers acknowledged messages again`)
        if (turn !== undefined || held.length === 0) continue
        const items = held.splice(0).map((firstTag) => ({ firstTag, count: 1, outcome: OUTCOME.ack }))
        broker.turn.begin()
        broker.leases.settle(subscription, items)
      }
      wrong ??= judge.wrong
      if (wrong !== undefined) throw wrong
      const { leased } = broker.catalog.info(name as QueueName)
      const { line, live } = model.state.names.get(name)!
      // A ready message can be behind a retry of its key.
      const first = line.first(live.values())
      if (leased > 0 || first !== undefined)
        throw new Violation(
          16,
          `offset ${first?.offset} of ${name} waits after recovery although there is credit; ${leased} are leased`,
        )
    }
  }
}
