/** The result of the work: the mean delay for each origin airport. */

interface Sum {
  flights: number
  minutes: number
}

export interface MeanDelay {
  readonly origin: string
  readonly flights: number
  /** Mean delay in minutes. */
  readonly mean: number
}

export class Delays {
  readonly #sums = new Map<string, Sum>()

  add(origin: string, delay: number): void {
    const sum = this.#sums.get(origin)
    if (sum === undefined) this.#sums.set(origin, { flights: 1, minutes: delay })
    else {
      sum.flights++
      sum.minutes += delay
    }
  }

  /** Airports with the worst mean delay, worst first, among those with at least `flightsMin` flights. */
  worst(count: number, flightsMin: number): MeanDelay[] {
    return [...this.#sums]
      .filter(([, { flights }]) => flights >= flightsMin)
      .map(([origin, { flights, minutes }]) => ({ origin, flights, mean: minutes / flights }))
      .sort((a, b) => b.mean - a.mean)
      .slice(0, count)
  }

  equals(other: Delays): boolean {
    if (this.#sums.size !== other.#sums.size) return false
    for (const [origin, { flights, minutes }] of this.#sums) {
      const sum = other.#sums.get(origin)
      if (sum?.flights !== flights || sum.minutes !== minutes) return false
    }
    return true
  }
}
