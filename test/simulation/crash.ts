/**
 * Crash points: whenever a run has used its disk, an image of what a loss of power (or a kill) could leave is taken
 * aside, a new broker recovers from it, and its state is compared with what the log says must be there. The run itself
 * does not notice.
 */
import { readU64, type SluiceError } from '@sluice/protocol'
import { Broker } from '../../packages/server/src/broker/broker.js'
import { FileLog } from '../../packages/server/src/log/file-log.js'
import type { LogBounds } from '../../packages/server/src/log/log.js'
import type { Consumer, Run, Subscription } from '../../packages/server/src/queue/index.js'
import { sameBytes, splitRecords } from './attempts.js'
import { Chance } from './chance.js'
import type { SimulatedDisk } from './disk.js'
import type { LedgerState } from './ledger.js'
import { compareRecovered } from './recovery.js'
import { Violation } from './trace.js'
import type { World } from './world.js'

/** What was looked at. */
export interface CrashCounts {
  images: number
  /** Of these, with an entry that was under way kept, cut, or damaged. */
  withUnfinished: number
  torn: number
  afterStop: number
  fromCheckpoint: number
  messages: number
  batches: number
  /** Recovered a second time, after a crash behind recovery, and within it. */
  again: number
  interrupted: number
  /** Sent to once more, and handed out whole. */
  resent: number
  drained: number
  drainedMessages: number
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
    again: 0,
    interrupted: 0,
    resent: 0,
    drained: 0,
    drainedMessages: 0,
  }
}

interface Recovered {
  readonly broker: Broker
  readonly log: FileLog
  readonly bounds: LogBounds
  readonly turns: (() => void)[]
}

const AGAIN_SHARE = 0.1
const INTERRUPTED_SHARE = 0.06
const USED_SHARE = 0.06

export class CrashPoints {
  readonly counts: CrashCounts
  readonly #chance: Chance
  readonly #share: number
  #isFull: () => boolean

  /** `share` of the uses of the disk are looked at, until `isFull`. */
  constructor(seed: number, counts: CrashCounts, share: number, isFull: () => boolean) {
    this.#chance = new Chance(seed ^ 0x0c4a_5e)
    this.counts = counts
    this.#share = share
    this.#isFull = isFull
  }

  async look(world: World): Promise<void> {
    const chance = this.#chance
    if (!chance.hit(this.#share) || this.#isFull()) return
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
    const { broker, log, bounds } = recovered
    const state = world.ledger.allows(bounds.nextLsn - 1)
    const afterCrash = !state.closed
    if (bounds.nextLsn - 1 > world.ledger.durable.lsn) counts.withUnfinished++
    if (bounds.cutBytes > 0) counts.torn++
    if (!afterCrash) counts.afterStop++
    if (bounds.checkpoint !== undefined) counts.fromCheckpoint++
    this.#compare(world, recovered, state, afterCrash)
    if (interrupted !== undefined) await this.#interrupt(world, interrupted)
    if (chance.hit(AGAIN_SHARE)) {
      // 17: recovery is over and durable; recovering from there gives the same.
      counts.again++
      const again = await this.#recover(world, image.crash(chance.random))
      if (again.bounds.nextLsn !== bounds.nextLsn + 1)
        throw new Violation(
          17,
          `after recovery the log ends with entry ${again.bounds.nextLsn - 1}, not ${bounds.nextLsn}`,
        )
      this.#compare(world, again, state, true)
    }
    if (chance.hit(USED_SHARE)) {
      this.#resend(world, broker, state)
      await this.#drain(recovered, state, afterCrash)
      broker.audit()
    }
    void log
  }

  #compare(world: World, { broker, log }: Recovered, state: LedgerState, afterCrash: boolean): void {
    const compared = compareRecovered(broker, log, state, afterCrash, (identity) =>
      world.lowestUnanswered(identity),
    )
    this.counts.messages += compared.messages
    this.counts.batches += compared.batches
  }

  /** 17: recovery crashes itself, somewhere; the next one finds nothing less. */
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
    // At most the boot mark of the recovery that was cut short stands behind.
    const base = reported === undefined ? Math.min(last, ledger.written.lsn) : reported.nextLsn - 1
    if (last < base || last > base + 1)
      throw new Violation(17, `recovery was cut short behind entry ${base}; the next one finds ${last}`)
    const state = ledger.allows(base)
    this.#compare(world, recovered, state, last > base || !state.closed)
  }

  #begin(
    world: World,
    disk: SimulatedDisk,
  ): {
    readonly broker: Promise<Broker>
    readonly log: FileLog
    readonly bounds: Promise<LogBounds>
    readonly turns: (() => void)[]
  } {
    const log = new FileLog({
      disk,
      segmentBytes: world.segmentBytes,
      lowFreeBytes: 0,
      now: () => world.brokerMs,
      random32: () => 0x5eed_0000 + world.seed,
      sleep: () => new Promise(() => {}),
    })
    let told: (bounds: LogBounds) => void
    const bounds = new Promise<LogBounds>((resolve) => (told = resolve))
    const open = log.open.bind(log)
    log.open = async () => {
      const found = await open()
      told(found)
      return found
    }
    const turns: (() => void)[] = []
    const broker = Broker.open({
      log,
      now: () => world.brokerMs,
      random: () => 0.5,
      defer: (turn) => turns.push(turn),
      onFatal: () => {},
      messageBytesMax: world.messageBytesMax,
      blocks: { blockBytes: 4096, recentBytes: 64 * 1024, coldBytes: 256 * 1024, readAheadBytes: 16 * 1024 },
      checkpointBytes: 1 << 30,
    })
    // One that is cut short never ends.
    broker.catch(() => {})
    return { broker, log, bounds, turns }
  }

  async #recover(world: World, disk: SimulatedDisk): Promise<Recovered> {
    const opening = this.#begin(world, disk)
    return {
      broker: await opening.broker,
      log: opening.log,
      bounds: await opening.bounds,
      turns: opening.turns,
    }
  }

  /** 3: what producers would send again is answered as before, or taken now. */
  #resend(world: World, broker: Broker, state: LedgerState): void {
    for (const sender of world.producers) {
      const saved = state.producers.get(sender.identityText)
      const producer = broker.attachProducer(sender.identityText, saved?.highest ?? 0)
      const lowest = sender.lowestUnanswered
      for (const attempt of sender.unanswered()) {
        this.counts.resent++
        const known = saved?.accepted.get(attempt.number)
        const queue = [...state.queues.values()].find(({ name }) => name === attempt.queue)
        const next = queue === undefined ? -1 : broker.queue(attempt.queue).next
        const what = `batch ${attempt.number} of ${sender.name}, sent again`
        let base: number
        try {
          base = broker.publish(
            producer,
            attempt.queue,
            attempt.batch,
            0,
            attempt.batch.length,
            attempt.number - lowest,
          )
        } catch (error) {
          const { code } = error as SluiceError
          if (known !== undefined || code === 'UNKNOWN_OUTCOME')
            throw new Violation(3, `${what}, is refused with ${code}`)
          if (queue !== undefined && !attempt.expects?.includes(code))
            throw new Violation(3, `${what}, is refused with ${code}`)
          continue
        }
        if (known !== undefined ? base !== known.base : base !== next)
          throw new Violation(3, `${what}, is accepted at ${base}; known at ${known?.base}, next ${next}`)
        if (known === undefined && readU64(attempt.batch, 24) !== attempt.number)
          throw new Error('an attempt does not carry its number')
      }
    }
  }

  /** 1, 2, 12, 22: everything that is not dead or scheduled is handed out, once, in order, whole and marked. */
  async #drain({ broker, turns }: Recovered, state: LedgerState, afterCrash: boolean): Promise<void> {
    this.counts.drained++
    for (const saved of state.queues.values()) {
      const got = new Map<number, { readonly record: Uint8Array; readonly redelivered: boolean }>()
      let plain = -1
      let tried = { dueMs: -1, offset: -1 }
      let wrong: Violation | undefined
      const consumer: Consumer = {
        isReady: true,
        deliver: (
          _subscription: Subscription,
          run: Run,
          _firstTag: number,
          count: number,
          bytes: Uint8Array,
          start: number,
          end: number,
        ) => {
          for (const [i, record] of splitRecords(bytes, start, end).entries()) {
            const offset = run.offset + i
            // Those that were tried go by due time, the others by offset; a clock can have been set back between them.
            const dueMs = saved.live.get(offset)?.dueMs
            if (got.has(offset))
              wrong ??= new Violation(7, `offset ${offset} of ${saved.name} is handed out twice`)
            const isBehind =
              dueMs === undefined
                ? offset < plain
                : dueMs < tried.dueMs || (dueMs === tried.dueMs && offset < tried.offset)
            if (isBehind)
              wrong ??= new Violation(12, `offset ${offset} of ${saved.name} comes too late after recovery`)
            if (dueMs === undefined) plain = offset
            else tried = { dueMs, offset }
            got.set(offset, { record, redelivered: run.redelivered })
          }
          if (count !== splitRecords(bytes, start, end).length)
            wrong ??= new Violation(2, `a run of ${count} of ${saved.name} is not whole`)
        },
        drained: () => {},
        ended: (_subscription, error) => {
          wrong ??= new Violation(2, `${saved.name} cannot be drained: ${error.message}`)
        },
      }
      broker.subscribe(saved.name as never, 1, consumer, 65_535, 0xffff_ffff, undefined)
      for (let quiet = 0; quiet < 3;) {
        const turn = turns.shift()
        turn?.()
        await new Promise((resolve) => setImmediate(resolve))
        quiet = turn === undefined ? quiet + 1 : 0
      }
      if (wrong !== undefined) throw wrong
      const { ready, scheduled } = broker.info(saved.name as never)
      if (ready > 0)
        throw new Violation(
          16,
          `${ready} messages of ${saved.name} wait after recovery although there is credit`,
        )
      let waiting = 0
      for (const [offset, message] of saved.live) {
        if (message.dead !== undefined) continue
        const found = got.get(offset)
        if (found === undefined) {
          waiting++
          continue
        }
        this.counts.drainedMessages++
        if (!sameBytes(found.record, message.record))
          throw new Violation(
            2,
            `offset ${offset} of ${saved.name} is handed out with other bytes after recovery`,
          )
        if (afterCrash && !found.redelivered)
          throw new Violation(
            22,
            `offset ${offset} of ${saved.name} is handed out after a crash without the mark`,
          )
      }
      if (waiting !== scheduled)
        throw new Violation(
          1,
          `${waiting} messages of ${saved.name} are not handed out after recovery; ${scheduled} are scheduled`,
        )
    }
  }
}
