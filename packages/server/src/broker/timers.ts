/**
 * The armed timers: a binary heap with the earliest deadline first. Each timer knows its place in the heap, so arming
 * the timer again moves it, and disarming the timer removes it.
 *
 * Invariant: `heap[timer.place] === timer` for each armed timer, and no timer has an earlier deadline than its
 * parent.
 */
import type { Timer } from '../queue/index.js'

export class Timers {
  readonly #heap: Timer[] = []

  get size(): number {
    return this.#heap.length
  }

  /** The earliest deadline of all timers; Infinity when no timer is armed. */
  get firstMs(): number {
    return this.#heap.length === 0 ? Infinity : this.#heap[0]!.deadlineMs
  }

  /** Disarms and returns the timer with the earliest deadline. At least one timer must be armed. */
  shift(): Timer {
    const first = this.#heap[0]!
    this.arm(first, Infinity)
    return first
  }

  /** Replaces the timer's deadline by `deadlineMs`. Infinity disarms the timer. */
  arm(timer: Timer, deadlineMs: number): void {
    if (deadlineMs === timer.deadlineMs) return
    timer.deadlineMs = deadlineMs
    if (deadlineMs === Infinity) this.#remove(timer)
    else if (timer.place === -1) {
      this.#heap.push(timer)
      this.#rise(timer, this.#heap.length - 1)
    } else this.#sift(timer, timer.place)
  }

  #remove(timer: Timer): void {
    const { place } = timer
    timer.place = -1
    const last = this.#heap.pop()!
    if (last !== timer) this.#sift(last, place)
  }

  #sift(timer: Timer, place: number): void {
    const hole = this.#descend(timer, place)
    if (hole === place) this.#rise(timer, place)
    else this.#put(timer, hole)
  }

  // Puts the timer at `place` or above it, directly below the nearest timer whose deadline is not later.
  #rise(timer: Timer, place: number): void {
    let hole = place
    while (hole > 0) {
      const above = (hole - 1) >>> 1
      if (this.#heap[above]!.deadlineMs <= timer.deadlineMs) break
      this.#put(this.#heap[above]!, hole)
      hole = above
    }
    this.#put(timer, hole)
  }

  // Moves timers with earlier deadlines up from below `place`; returns the place that is left for the timer.
  #descend(timer: Timer, place: number): number {
    const heap = this.#heap
    let hole = place
    for (let below = hole * 2 + 1; below < heap.length; below = hole * 2 + 1) {
      if (below + 1 < heap.length && heap[below + 1]!.deadlineMs < heap[below]!.deadlineMs) below++
      if (heap[below]!.deadlineMs >= timer.deadlineMs) break
      this.#put(heap[below]!, hole)
      hole = below
    }
    return hole
  }

  #put(timer: Timer, place: number): void {
    this.#heap[place] = timer
    timer.place = place
  }
}
