/** All random draws of a simulated run, from one seed: the same seed gives the same draws. */
import { randomFrom, type Random } from './disk.js'

export class Chance {
  readonly random: Random

  constructor(seed: number) {
    // Adjacent seeds must not start with similar draws.
    this.random = randomFrom(Math.imul(seed, 0x9e37_79b1) ^ 0x51_01_ce)
  }

  /** A whole number from `min` to `max`, inclusive. */
  int(min: number, max: number): number {
    return min + Math.floor(this.random() * (max - min + 1))
  }

  /** A number up to `max` that is small in most cases: each doubling of the range is equally likely. */
  skewed(max: number): number {
    return Math.floor(2 ** (this.random() * Math.log2(max + 1))) - 1
  }

  hit(probability: number): boolean {
    return this.random() < probability
  }

  pick<T>(items: readonly T[]): T {
    return items[Math.floor(this.random() * items.length)]!
  }

  bytes(length: number): Uint8Array {
    const bytes = new Uint8Array(length)
    for (let at = 0; at < length; at++) bytes[at] = Math.floor(this.random() * 256)
    return bytes
  }
}
