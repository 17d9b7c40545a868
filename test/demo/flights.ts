/** The records of the demo, US flights of 2001 from npm's `vega-datasets`, and the queue that they pass through. */
import { queue } from '@sluice/client'
import { readFile } from 'node:fs/promises'

export interface Flight {
  /** `2001/01/31 23:59`, local time. */
  readonly date: string
  /** Minutes of delay; negative for an early flight. */
  readonly delay: number
  /** Distance in miles. */
  readonly distance: number
  /** IATA code of the origin airport. */
  readonly origin: string
  readonly destination: string
}

/** Body of a message. `index` counts a producer's records from 0, in the order in which it publishes them. */
export interface FlightMessage {
  readonly producer: number
  readonly index: number
  readonly flight: Flight
}

export const Flights = queue<FlightMessage>('flights')

export const FLIGHTS_MAX = 20_000
export const PRODUCERS = 2

/** The first `count` records, in the order of the file. */
export async function readFlights(count: number): Promise<Flight[]> {
  const file = new URL('../data/flights-20k.json', import.meta.resolve('vega-datasets'))
  const flights = JSON.parse(await readFile(file, 'utf8')) as Flight[]
  if (flights.length < count) throw new Error(`${file.pathname} has ${flights.length} records, not ${count}`)
  return flights.slice(0, count)
}

/** Index in the file of a producer's first record; `count` for the producer after the last. */
export function firstRecord(producer: number, count: number): number {
  return Math.floor((producer * count) / PRODUCERS)
}
