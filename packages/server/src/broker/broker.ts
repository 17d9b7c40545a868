/**
 * The broker: a deterministic state machine over one log. This class opens and closes the broker, ends each turn, and
 * fails as a whole. Sessions call the parts of the broker: a command is checked against the state, its facts are
 * applied and written to the open entry, and its answer waits until that entry is on disk. There is no second, pending
 * state: a failed write ends the process.
 *
 * Once per turn of the event loop, `#endTurn` delivers what became ready, writes the open entry and releases answers.
 */
import { BATCH_TYPE, LIMITS, MESSAGE_OVERHEAD_BYTES, SluiceError } from '@sluice/protocol'
import { BLOCKS_DEFAULTS, Blocks, type BlocksOptions } from '../log/blocks.js'
import { entryLimits } from '../log/entry-limits.js'
import type { Log } from '../log/log.js'
import { SEGMENT_HEADER_BYTES } from '../log/segment.js'
import { Tail } from '../log/tail.js'
import { SEED_BYTES, drawSeed, writeSeed, type Queue, type Timer } from '../queue/index.js'
import { Catalog } from './catalog.js'
import { Compaction } from './compaction.js'
import { Dispatcher } from './dispatch.js'
import { Feeds } from './feeds.js'
import { Groups } from './groups.js'
import { Intake } from './intake.js'
import { Explainer, type Delivering } from './explain.js'
import { History } from './history.js'
import { Leases } from './leases.js'
import { Mailboxes } from './mailboxes.js'
import { Moves } from './moves.js'
import { DiskRequests } from './disk-requests.js'
import type { Observer } from './observer.js'
import { Operator } from './operator.js'
import { Producers } from './producers.js'
import { Readers } from './readers.js'
import { Records } from './records.js'
import { Replays } from './replays.js'
import { Registry } from './registry.js'
import { Schedules } from './schedules.js'
import { recover, type Recovered } from '../state/recovery.js'
import { ColdChunks } from '../state/cold-chunks.js'
import { PAGES_MAX } from '../state/directory.js'
import { SharedIntake } from './shared-intake.js'
import type { TargetsOfTopic } from './step-batches.js'
import { StreamHolds } from './stream-holds.js'
import { Streams } from './streams.js'
import { Space, type Holder } from '../state/space.js'
import { BOOT_AFTER_CLOSE, type State } from '../state/state.js'
import { Topics } from './topics.js'
import { Turn } from './turn.js'
import { UnusedQueues } from './unused-queues.js'
import { Writer, type MemoryUse } from './writer.js'

export interface BrokerOptions {
  readonly log: Log
  /** Returns the time in milliseconds since the epoch. This time must never go back. */
  readonly now: () => number
  /**
   * Moves the clock forward to `timeMs`, the newest time in the log. Without this option, broker time stops until the
   * clock reaches that time.
   */
  readonly continueFrom?: (timeMs: number) => void
  /** Returns a number in [0, 1), for jitter and, at the first boot, the seed of hashes. */
  readonly random: () => number
  /** Runs `endTurn` after all input of the turn has been handled. */
  readonly defer: (endTurn: () => void) => void
  /** Called when the broker has failed. After that, nothing may be confirmed, and the process must end. */
  readonly onFatal: (error: unknown) => void
  readonly onNotice?: (event: string, details: object) => void
  readonly messageBytesMax?: number
  readonly queuesMax?: number
  /** Maximum number of pages of the state; default: `PAGES_MAX`. */
  readonly pagesMax?: number
  /** Maximum number of bindings and schedules; default: `DEFINITIONS_MAX`. */
  readonly definitionsMax?: number
  /** Maximum number of schedules; default: `SCHEDULES_MAX`. */
  readonly schedulesMax?: number
  /** Maximum number of bindings; default: `BINDINGS_MAX`. */
  readonly bindingsMax?: number
  /** Maximum number of producers that are remembered; default: `PRODUCERS_MAX`. */
  readonly producersMax?: number
  readonly blocks?: Partial<BlocksOptions>
  /** Connections are not read while more than this number of bytes wait for the disk. Default: 32 MiB. */
  readonly pendingBytesMax?: number
  /** Bytes of log between two checkpoints. Default: half a segment. */
  readonly checkpointBytes?: number
  /** Maximum number of messages beyond lowered limits that the publishes of one turn evict. Default: 1,024. */
  readonly excessMax?: number
  /** Maximum number of due and expired messages that one turn handles, for all queues together. Default: 8,192. */
  readonly dueMax?: number
  /** See `TurnOptions`. */
  readonly enteredMax?: number
  /** Receives each command and its answer; only tests set this option. */
  readonly observer?: Observer | undefined
}

type Checked = BrokerOptions & { readonly messageBytesMax: number }

/**
 * Holds answers back until the entries of their turns are durable. After `endTurn`, the answers that were queued in the
 * turn wait for the entry `gate`. `sendDurable` sends the answers that wait for the entry `durableLsn` or an earlier entry,
 * and returns whether other answers are still queued.
 */
export interface Output {
  endTurn(gate: number): void
  sendDurable(durableLsn: number): boolean
}

/** Idle time after which an empty entry is appended. */
const IDLE_MS = 1_000
const PENDING_BYTES_DEFAULT = 32 << 20

export interface BrokerStatus {
  readonly queues: number
  readonly messages: number
  readonly entries: number
  readonly recoveryMs: number
  readonly cutBytes: number
  readonly boot: number
  readonly afterCrash: boolean
}

/** Use of memory and disk. All values except `segments` are in bytes. */
export interface BrokerUsage {
  /** Size of the blocks of the log that are in memory: recently written blocks, and blocks that were read back. */
  readonly blockBytes: number
  /** Size of the batches with live messages, and of the whole log, on disk. */
  readonly liveBytes: number
  readonly logBytes: number
  readonly segments: number
  /**
   * Size of the records of accepted messages, and number of all written bytes, including the bytes that fill new
   * segments. Both are counted since the broker started.
   */
  readonly recordBytes: number
  readonly writtenBytes: number
}

export class Broker implements Delivering {
  readonly messageBytesMax: number
  /**
   * Maximum number of unanswered batches of one producer. The results of this number of batches fit in the producer's
   * page.
   */
  readonly inFlightBatchesMax: number
  readonly boot: number
  readonly status: BrokerStatus
  readonly turn: Turn
  readonly producers: Producers
  readonly intake: Intake
  readonly sharedIntake: SharedIntake
  readonly leases: Leases
  readonly readers: Readers
  readonly catalog: Catalog
  readonly registry: Registry
  readonly schedules: Schedules
  readonly topics: Topics
  readonly streams: Streams
  readonly groups: Groups
  readonly operator: Operator
  readonly replays: Replays
  readonly history: History
  readonly explainer: Explainer
  readonly unused: UnusedQueues
  readonly mailboxes: Mailboxes
  readonly #options: BrokerOptions
  readonly #log: Log
  readonly #state: State
  readonly #blocks: Blocks
  readonly #tail: Tail
  readonly #space: Space
  readonly #writer: Writer
  readonly #moves: Moves
  readonly #dispatcher: Dispatcher
  readonly #compaction: Compaction
  readonly #spaceTimer: Timer
  readonly #idleTimer: Timer
  readonly #pagesMax: number
  readonly #pendingBytesMax: number
  /** Outputs with answers or deliveries to send, in no particular order. */
  readonly #outputs = new Set<Output>()
  readonly #waitingForDisk: (() => void)[] = []
  #endedAtMs = 0
  #lastEntryIsEmpty = true
  #failed = false
  #failure: unknown
  #stopped = false
  #closing: Promise<void> | undefined
  #idleWaiters: (() => void)[] = []
  // `intake` is made before `topics`.
  readonly #targetsOf: TargetsOfTopic = (...batch) => this.topics.targetsOf(...batch)

  /**
   * Recovers from the log and begins a new boot; resolves when the boot mark is on disk.
   * @throws SluiceError LOG_CORRUPT, LOG_FAILED, DISK_LOW, INVALID_ARGUMENT
   */
  static async open(options: BrokerOptions): Promise<Broker> {
    const startedMs = options.now()
    const { log } = options
    const recovered = await recover(log)
    const { state, bounds } = recovered
    const recoveryMs = options.now() - startedMs
    options.continueFrom?.(state.newestMs)
    const messageBytesMax = options.messageBytesMax ?? LIMITS.messageBytesDefault
    if (
      messageBytesMax > LIMITS.messageBytesMax ||
      messageBytesMax + MESSAGE_OVERHEAD_BYTES > state.limits.messageBytesMax
    ) {
      throw new SluiceError('INVALID_ARGUMENT', messageDoesNotFit(messageBytesMax, log))
    }
    const afterCrash = !state.closed
    if (afterCrash) state.crashed(bounds.nextPosition)
    if (state.boot === 0) state.seed = drawSeed(options.random)
    state.boot++
    const turn = new Turn(options, Math.max(options.now(), state.newestMs))
    let messages = 0
    for (const queue of state.queues.values()) {
      queue.open(turn.nowMs)
      queue.loseReleased(turn.nowMs)
      messages += queue.live
    }
    const status: BrokerStatus = {
      queues: state.queues.size,
      messages,
      entries: recovered.entries,
      recoveryMs,
      cutBytes: bounds.cutBytes,
      boot: state.boot,
      afterCrash,
    }
    const broker = new Broker({ ...options, messageBytesMax }, recovered, turn, status)
    const seed = new Uint8Array(SEED_BYTES)
    writeSeed(seed, 0, state.seed)
    broker.#writer.mark(BATCH_TYPE.boot, state.boot, afterCrash ? 0 : BOOT_AFTER_CLOSE, seed)
    if (await broker.#idles()) {
      // No event announces messages that an earlier process did not finish moving.
      if (broker.#moves.isWanted || broker.schedules.isWanted) broker.turn.wake()
      return broker
    }
    if (broker.#failed) throw broker.#failure
    await broker.#abandon()
    throw new SluiceError(
      'DISK_LOW',
      `The disk is full: to start, the log needs another segment of ${log.segmentBytes / 2 ** 20} MiB. Free some space and start again; nothing is lost.`,
    )
  }

  private constructor(options: Checked, recovered: Recovered, turn: Turn, status: BrokerStatus) {
    const { log, messageBytesMax, observer } = options
    const { state, bounds, directory } = recovered
    this.#options = options
    this.#log = log
    this.#state = state
    this.turn = turn
    this.status = status
    this.boot = state.boot
    this.messageBytesMax = messageBytesMax
    this.inFlightBatchesMax = state.limits.producerNumbersMax
    this.#pagesMax = options.pagesMax ?? PAGES_MAX
    this.#pendingBytesMax = options.pendingBytesMax ?? PENDING_BYTES_DEFAULT
    this.#spaceTimer = turn.timer()
    this.#idleTimer = turn.timer()
    if (observer !== undefined) state.observe(observer)
    this.#blocks = new Blocks(log, { ...BLOCKS_DEFAULTS, ...options.blocks })
    this.#tail = new Tail(log, bounds, this.#blocks)
    this.#tail.epoch = state.boot
    this.#tail.report({ durable: (lsn) => this.#durable(lsn), failed: (error) => this.fail(error) })
    const cold = new ColdChunks(this.#blocks, state.tree)
    this.#space = new Space(
      log,
      this.#tail,
      state,
      cold,
      options.checkpointBytes ?? log.segmentBytes / 2,
      directory?.lowWater ?? bounds.firstPosition,
      () => this.#writer.writeNoted(),
      () => turn.wake(),
    )
    const records = new Records(this.#blocks, cold)
    const writer = new Writer(log, this.#tail, turn)
    this.unused = new UnusedQueues(state, turn, (queue) => this.#deleteUnused(queue))
    this.intake = new Intake(state, cold, writer, turn, this.unused, this.#targetsOf, options)
    this.sharedIntake = new SharedIntake(state, writer, turn, this.intake, options.messageBytesMax)
    const moves = new Moves(state, this.intake, records, turn, observer)
    const requests = new DiskRequests(turn)
    this.#writer = writer
    this.#moves = moves
    const feeds = new Feeds(state, this.#blocks, cold)
    this.producers = new Producers(state, turn, options)
    this.mailboxes = new Mailboxes(turn)
    this.leases = new Leases(state, writer, turn, this.unused, options)
    this.#dispatcher = new Dispatcher(this.#blocks, cold, feeds, writer, this.leases, turn, options)
    this.readers = new Readers(state, this.#blocks, cold, turn, this.unused, options)
    this.#compaction = new Compaction(state, this.#blocks, cold, this.#space, turn, writer, options)
    this.registry = new Registry(state, writer, options)
    this.topics = new Topics(state, this.registry, this.sharedIntake, turn, options)
    const { intake, sharedIntake, leases, readers, registry, topics, unused } = this
    this.schedules = new Schedules(state, registry, intake, sharedIntake, topics, turn, options)
    this.catalog = new Catalog(state, writer, moves, leases, readers, topics, turn, unused, options)
    this.streams = new Streams(state, this.catalog, turn)
    this.groups = new Groups(state, this.catalog, cold, requests, turn)
    this.operator = new Operator(state, records, cold, moves, requests, turn, observer)
    this.replays = new Replays(state, this.intake, records, cold, requests, turn)
    this.history = new History(log, state, requests)
    this.explainer = new Explainer(state, this, turn)
    turn.connect({
      writer,
      moves,
      holds: new StreamHolds(options),
      due: (queue) => this.#due(queue),
      end: () => this.#endTurn(),
    })
    for (const queue of state.queues.values()) {
      turn.armQueue(queue)
      this.unused.watch(queue)
    }
  }

  /** Lowest position in the log that the next write can have. */
  get endPosition(): number {
    return this.#tail.position
  }

  /**
   * Set by the server while the process is out of memory. Publishes are then refused, and everything else continues.
   */
  set memoryFull(use: MemoryUse | undefined) {
    this.#writer.memoryFull = use
  }

  /**
   * Whether reading from connections should pause: too many bytes wait for the disk, or the remaining disk space is
   * needed to free segments.
   */
  get isBehind(): boolean {
    return this.#tail.pendingBytes > this.#pendingBytesMax || this.#space.isExhausted
  }

  /** See `Dispatcher.isReading`. */
  isReading(queue: Queue): boolean {
    return this.#dispatcher.isReading(queue)
  }

  /** Registers an output in which an answer or a delivery was queued in this turn. */
  noteOutput(output: Output): void {
    this.#outputs.add(output)
    this.turn.wake()
  }

  /** Calls `resume` when `isBehind` is false again. */
  whenNotBehind(resume: () => void): void {
    this.#waitingForDisk.push(resume)
  }

  // --- closing ---

  /** Records what was delivered, marks the end of the log, and waits until everything is on disk. */
  close(): Promise<void> {
    return (this.#closing ??= this.#close())
  }

  async #close(): Promise<void> {
    if (this.#failed) return
    this.#endTurn()
    // Nothing may follow the end mark, neither a turn nor a copy from relocation.
    this.#stopped = true
    this.turn.stop()
    this.#space.stop()
    for (const queue of this.#state.queues.values()) {
      if (queue.deliveredBelow > queue.redeliveredBelow) {
        queue.redeliveredBelow = queue.deliveredBelow
        queue.dirty = true
        queue.facts.delivered(queue.deliveredBelow)
      }
      queue.tally()
      this.#writer.note(queue)
    }
    this.#writer.writeNoted()
    this.#writer.mark(BATCH_TYPE.close, 0, 0, new Uint8Array(0))
    if (await this.#idles()) {
      this.#tail.sealEmpty(this.turn.nowMs)
      await this.#idles()
    } else if (!this.#failed) {
      this.#options.onNotice?.('stopped without a mark', {
        text: 'The disk is full. No confirmed message is lost; unsettled messages will be marked as redelivered.',
      })
    }
    await this.#abandon()
  }

  /** Waits until everything is on disk. Returns false if a write failed or the next segment has no room on the disk. */
  async #idles(): Promise<boolean> {
    await Promise.race([this.#untilIdle(), this.#log.stuck()])
    return this.#tail.isIdle && !this.#failed
  }

  // Closes the log without waiting for the disk. Entries that are not yet on disk were not confirmed and never will
  // be.
  #abandon(): Promise<void> {
    if (!this.#tail.isIdle) {
      this.#failed = true
      this.turn.stop()
      this.#outputs.clear()
    }
    return this.#log.close()
  }

  usage(): BrokerUsage {
    const { bytes, segments, writtenBytes } = this.#log.usage()
    return {
      blockBytes: this.#blocks.memoryBytes,
      liveBytes: this.#state.segments.liveBytes,
      logBytes: bytes,
      segments,
      recordBytes: this.#writer.recordBytes,
      writtenBytes,
    }
  }

  /** Returns what prevents the oldest segment of the log from being freed. Visits every queue. */
  holder(): Holder {
    return this.#space.holder()
  }

  /** Whether streams are being compacted. */
  get isCompacting(): boolean {
    return this.#compaction.isWanted
  }

  /** Number of chunks that are not in memory. Visits every queue. */
  coldChunks(): number {
    let count = 0
    for (const queue of this.#state.queues.values()) count += queue.chunks.coldCount
    return count
  }

  /** Recounts the state and compares the result with the counters (invariant 6). @throws Error naming what differs */
  audit(): void {
    for (const queue of this.#state.queues.values()) queue.audit()
    this.#state.audit()
  }

  /** The part of `audit` that concerns the log. It is cheaper, and is allowed at any time. */
  auditUse(): void {
    this.#state.auditUse()
  }

  #durable(lsn: number): void {
    if (this.#space.durable(lsn)) this.turn.wake()
    this.#sendDurable(lsn)
    this.#resume()
    if (this.#stopped) this.#tail.flush(this.turn.nowMs)
    if (!this.#tail.isIdle) this.turn.wake()
    else for (const waiter of this.#idleWaiters.splice(0)) waiter()
  }

  /** Ends the broker after a defect or a failed write. After that, nothing is confirmed. */
  fail(error: unknown): void {
    if (this.#failed) return
    this.#failed = true
    this.turn.stop()
    this.#failure = error
    this.#outputs.clear()
    for (const waiter of this.#idleWaiters.splice(0)) waiter()
    this.#options.onFatal(error)
  }

  #due(queue: Queue): void {
    this.leases.due(queue)
    this.#compaction.note(queue)
  }

  #deleteUnused({ name, live: messages }: Queue): void {
    this.catalog.delete(name)
    this.#options.onNotice?.('unused queue deleted', { queue: name, messages })
  }

  #endTurn(): void {
    const turn = this.turn
    if (!turn.beginEnd()) return
    this.intake.endTurn()
    try {
      turn.continueDue()
      // While the disk is behind, nothing is published by schedules, and nothing is delivered: deliveries lead to facts,
      // which would queue behind the entries that already wait for the disk.
      if (!this.isBehind) {
        this.#compaction.step()
        if (this.schedules.isWanted) this.schedules.step()
        turn.eachActive((queue) => this.#deliver(queue))
      }
      this.readers.step()
      if (this.#moves.isWanted) this.#moves.step()
      this.#writer.writeNoted()
      this.#space.step(turn.nowMs)
      turn.arm(this.#spaceTimer, this.#space.nextDeadline)
      this.#writer.checkpointBytesMax = this.#space.checkpointBytesMax
      const { pages } = this.#state
      this.#writer.pagesFull = pages < this.#pagesMax ? undefined : { pages, pagesMax: this.#pagesMax }
    } catch (error) {
      // This is a defect of the broker. The state may be half changed, so it must not be confirmed.
      this.fail(error)
      return
    }
    // An empty entry follows the last entry with content, so that recovery can distinguish damage to that entry from an
    // unfinished write (STORAGE.md).
    if (!this.#tail.isIdle) {
      this.#endedAtMs = this.turn.nowMs
      this.#lastEntryIsEmpty = false
    } else if (!this.#lastEntryIsEmpty && this.turn.nowMs >= this.#endedAtMs + IDLE_MS) {
      this.#lastEntryIsEmpty = true
      this.#tail.sealEmpty(this.turn.nowMs)
    }
    turn.arm(this.#idleTimer, this.#lastEntryIsEmpty ? Infinity : this.#endedAtMs + IDLE_MS)
    const { gate } = this.#tail
    for (const output of this.#outputs) output.endTurn(gate)
    this.#tail.flush(this.turn.nowMs)
    this.#sendDurable(this.#tail.durableLsn)
    this.#resume()
  }

  #deliver(queue: Queue): void {
    this.readers.wake(queue)
    this.#dispatcher.dispatch(queue)
  }

  #resume(): void {
    if (this.isBehind) return
    for (const resume of this.#waitingForDisk.splice(0)) resume()
    if (this.turn.hasActive || this.schedules.isWanted || this.#compaction.isWanted) this.turn.wake()
  }

  #sendDurable(durableLsn: number): void {
    for (const output of this.#outputs) if (!output.sendDurable(durableLsn)) this.#outputs.delete(output)
  }

  async #untilIdle(): Promise<void> {
    while (!this.#tail.isIdle && !this.#failed) {
      await new Promise<void>((resolve) => {
        this.#idleWaiters.push(resolve)
      })
    }
  }
}

function messageDoesNotFit(messageBytesMax: number, { segmentBytes, entryBytesMax }: Log): string {
  const mib = (bytes: number): string => `${bytes} bytes (${Number((bytes / 2 ** 20).toFixed(3))} MiB)`
  const isFullSegment = entryBytesMax === segmentBytes - SEGMENT_HEADER_BYTES
  const bound = isFullSegment
    ? `segment-bytes of this log is ${mib(segmentBytes)}`
    : `an entry of this log has at most ${mib(entryBytesMax)}`
  const fits = entryLimits(entryBytesMax).messageBytesMax - MESSAGE_OVERHEAD_BYTES
  const most = Math.min(fits, LIMITS.messageBytesMax)
  const least = 4 * (Math.min(messageBytesMax, LIMITS.messageBytesMax) + MESSAGE_OVERHEAD_BYTES)
  const leastMiB = Math.ceil((least + SEGMENT_HEADER_BYTES) / 2 ** 20)
  return (
    `max-message-bytes is ${mib(messageBytesMax)}, and ${bound}: a message with its headers can take at most ` +
    `a quarter of ${isFullSegment ? 'a segment' : 'an entry'}, and at most ${mib(LIMITS.messageBytesMax)}. ` +
    `Set max-message-bytes to ${most} or less` +
    (isFullSegment ? `, or create a new log with segment-bytes of ${leastMiB} MiB or more.` : '.')
  )
}
