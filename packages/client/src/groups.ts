/**
 * A worker that groups messages for its handler. A group is a single message, or a batch that is gathered until it has
 * a given size or a given time has passed. With `ordering: 'key'`, messages of one key are handled in order. One call
 * of the handler gets one group.
 *
 * Messages are taken from the subscription as they arrive, and wait here in lines. A group is announced as started just
 * before its handler runs. A message that must be alone is a group by itself, and does not wait for others.
 */
import { OUTCOME, Timer, type SluiceError } from '@sluice/protocol'
import { Running } from './awaiting.js'
import { callHandler, Thrown, type Caller, type Follower } from './endings.js'
import { Lines } from './lines.js'
import { leaseLost } from './losses.js'
import type { DeliveredMessage, HandlerContext } from './message.js'
import type { WorkerSettings } from './options.js'
import type { Session } from './session.js'
import type { Subscription } from './subscription.js'
import type { Watcher } from './watchers.js'
import { ConsumingWorker } from './worker.js'

export type GroupHandler = (messages: DeliveredMessage[], context: HandlerContext) => unknown

/** The messages of one call of the handler, and its context. */
class Group extends Running implements HandlerContext, Watcher, Follower {
  readonly messages: readonly DeliveredMessage[]
  /** Called when the promise of the handler resolves; set when the handler returns a promise. */
  done!: () => void
  failed!: (error: unknown) => void
  #abort: AbortController | undefined

  constructor(messages: readonly DeliveredMessage[]) {
    super()
    this.messages = messages
  }

  get signal(): AbortSignal {
    if (this.#abort === undefined) {
      this.#abort = new AbortController()
      if (this.messages.some(({ isLost }) => isLost)) this.#abort.abort(leaseLost())
      else this.messages[0]!.watchedBy(this)
    }
    return this.#abort.signal
  }

  isAmong(tags: ReadonlySet<number>): boolean {
    return this.messages.some((message) => message.isAmong(tags))
  }

  abort(reason: SluiceError): void {
    this.#abort?.abort(reason)
  }

  /** Called when the handler has ended. */
  end(): void {
    if (this.#abort !== undefined) this.messages[0]!.unwatchedBy(this)
  }
}

export class GroupWorker extends ConsumingWorker implements Caller<Group, Group> {
  readonly #handler: GroupHandler
  readonly #size: number
  readonly #waitMs: number
  readonly #lines: Lines<DeliveredMessage>
  /** Groups that are announced as started. Their handlers run at the end of this turn, and count as running already. */
  #chosen: Group[] = []
  /** Groups whose handlers are running, including the chosen groups. */
  readonly #running = new Set<Group>()
  #timer: Timer | undefined

  constructor(
    session: Session,
    queue: string,
    settings: WorkerSettings,
    handler: GroupHandler,
    forget: (worker: ConsumingWorker) => void,
  ) {
    super(session, queue, settings, forget)
    this.#handler = handler
    this.#size = settings.batch?.size ?? 1
    this.#waitMs = settings.batch?.waitMs ?? 0
    this.#lines = new Lines(settings.ordered)
  }

  protected announceNext(subscription: Subscription): void {
    const { announcements } = subscription
    const nowMs = performance.now()
    while (subscription.buffered > 0) this.#lines.add(subscription.hold(), nowMs)
    while (this.running < this.settings.concurrency && this.#isDue(nowMs)) {
      if (!announcements.mayBegin(this.#lines.at(0)!)) break
      const messages = this.#lines.take(this.#together())
      announcements.begin(messages)
      const group = new Group(messages)
      this.#chosen.push(group)
      this.#running.add(group)
      this.running++
    }
    announcements.nameBegun()
  }

  /** Number of ready messages that form the next group. */
  #together(): number {
    let count = 1
    if (this.#lines.at(0)!.alone) return count
    while (count < this.#size && this.#lines.at(count)?.alone === false) count++
    return count
  }

  /** Whether a group should start now. If the group still waits for more messages, a timer asks again later. */
  #isDue(nowMs: number): boolean {
    const { ready } = this.#lines
    if (ready === 0) return false
    if (ready >= this.#size || this.#waitMs === 0) return true
    const dueMs = this.#lines.sinceMs + this.#waitMs
    // A message that must be alone ends the batch before it.
    if (nowMs >= dueMs || this.#together() < ready || this.#lines.at(0)!.alone) return true
    this.#timer ??= new Timer(() => {
      this.#timer = undefined
      this.requestStart()
    }, dueMs - nowMs)
    return false
  }

  startHandlers(): void {
    const chosen = this.#chosen
    this.#chosen = []
    for (const group of chosen) this.#start(group)
    if (chosen.length > 0) this.#more()
  }

  #start(group: Group): void {
    const end = callHandler(this.#handler, [...group.messages], group, this)
    if (end === undefined) this.#end(group, true, undefined)
    else if (end instanceof Thrown) this.#end(group, false, end.error)
  }

  follower(group: Group): Group {
    group.done = () => this.#handled(group, true, undefined)
    group.failed = (error) => this.#handled(group, false, error)
    return group
  }

  unfollowed(): void {}

  /** Called when the promise of the handler of `group` is settled. */
  #handled(group: Group, succeeded: boolean, error: unknown): void {
    this.#end(group, succeeded, error)
    this.#more()
  }

  #end(group: Group, succeeded: boolean, error: unknown): void {
    this.running--
    this.#running.delete(group)
    this.handlerEnded(group)
    group.end()
    if (succeeded) for (const message of group.messages) message.finish(OUTCOME.ack)
    else this.failed(group.messages, error)
    const nowMs = this.settings.ordered ? performance.now() : 0
    for (const message of group.messages) this.#lines.done(message, nowMs)
    this.notifyIdle()
  }

  // A blocked subscription calls `mayStart` when it may continue.
  #more(): void {
    const { subscription } = this
    if (subscription === undefined || this.isClosing || subscription.announcements.blocked) return
    if (this.running < this.settings.concurrency && this.#isDue(performance.now())) this.requestStart()
  }

  protected handlers(): readonly Running[] {
    return [...this.#running]
  }

  protected messagesOf(group: Running): readonly DeliveredMessage[] {
    return (group as Group).messages
  }

  leasesLost(tags: ReadonlySet<number>): readonly DeliveredMessage[] {
    this.orphan(tags)
    return this.#lines.lose(({ tag }) => tags.has(tag), performance.now())
  }

  protected forgetMessages(): void {
    this.running -= this.#chosen.length
    for (const group of this.#chosen) this.#running.delete(group)
    this.#chosen = []
    this.#lines.clear()
    this.#stopTimer()
    this.notifyIdle()
  }

  protected giveBack(subscription: Subscription): void {
    this.#stopTimer()
    subscription.releaseHeld(this.#lines.clear())
    subscription.releaseBuffered()
  }

  #stopTimer(): void {
    this.#timer?.cancel()
    this.#timer = undefined
  }
}
